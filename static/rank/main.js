// The ranking page. The form works without any of this; the modules add the strip, keys, drag, drafts and the reading tools to
// it, send what was ranked, and bring the next task. Each may have `listen`, once, and `renew`, for every task.
import { adopt, cards, form } from "./page.js";
import * as ahead from "./ahead.js";
import * as buttons from "./cards.js";
import * as clock from "./clock.js";
import * as compare from "./compare.js";
import * as doubt from "./doubt.js";
import * as drag from "./drag.js";
import * as drafts from "./drafts.js";
import { watchExpiry } from "./expiry.js";
import * as find from "./find.js";
import { current, look } from "./focus.js";
import * as fold from "./fold.js";
import { begin, onChange } from "./history.js";
import * as keymap from "./keymap.js";
import * as keys from "./keys.js";
import * as pack from "./pack.js";
import * as prompt from "./prompt.js";
import * as questions from "./questions.js";
import * as review from "./review.js";
import * as sending from "./sending.js";
import { unplaced } from "./state.js";
import { draw } from "./strip.js";
import { onShow } from "./swap.js";

const PARTS = [drag, buttons, keymap, keys, questions, find, fold, compare, prompt, review, clock, drafts, ahead, pack, sending];

function start() {
  PARTS.forEach((part) => part.renew?.());
  begin();
  drafts.restore();
  draw();
  doubt.draw();
  watchExpiry(Number(form.dataset.expiresIn));
  look(unplaced()[0] ?? cards[0], { focus: false });
  if (!document.querySelector("[data-focus]")) current.focus({ preventScroll: true });
}

adopt(document.getElementById("rank"));
for (const hear of [draw, doubt.draw, drafts.save, clock.act]) onChange(hear);
onShow(start);
PARTS.forEach((part) => part.listen?.());
start();
sending.begin();
