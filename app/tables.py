"""All tables in one import, for migrations and for `create_all` comparisons."""

from app.accounts import models as accounts
from app.corpora import models as corpora
from app.datasets import models as datasets
from app.db import Base
from app.idempotency import IdempotentAnswer
from app.loop import models as loop
from app.projects import models as projects
from app.projects.tallies import tallies
from app.prompts import models as prompts
from app.quality import models as quality
from app.rankings import models as rankings
from app.registry import models as registry
from app.runs import models as runs
from app.tasks import models as tasks
from app.webhooks import models as webhooks
from app.writing import models as writing

__all__ = [
    "Base",
    "IdempotentAnswer",
    "accounts",
    "corpora",
    "datasets",
    "loop",
    "projects",
    "prompts",
    "quality",
    "rankings",
    "registry",
    "runs",
    "tallies",
    "tasks",
    "webhooks",
    "writing",
]
metadata = Base.metadata
