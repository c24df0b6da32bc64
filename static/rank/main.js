// The ranking page. The form works without any of this; the modules add the strip, keys, drag and drafts to it.
import { adopt, cards, form } from "./page.js";
import * as buttons from "./cards.js";
import * as drag from "./drag.js";
import * as drafts from "./drafts.js";
import { watchExpiry } from "./expiry.js";
import { current, look } from "./focus.js";
import { begin, onChange } from "./history.js";
import * as keys from "./keys.js";
import * as questions from "./questions.js";
import * as sending from "./sending.js";
import { unplaced } from "./state.js";
import { draw } from "./strip.js";

adopt(document.getElementById("rank"));
onChange(draw);
onChange(drafts.save);
for (const part of [drag, buttons, keys, questions, drafts, sending]) part.listen();
begin();
drafts.restore();
draw();
watchExpiry(Number(form.dataset.expiresIn));
look(unplaced()[0] ?? cards[0], { focus: false });
if (!document.querySelector("[data-focus]")) current.focus({ preventScroll: true });
