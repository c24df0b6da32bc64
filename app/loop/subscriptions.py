"""What the loop hears of earlier domains, and which of its functions answers."""

from __future__ import annotations

from app.events import events
from app.loop import alternatives, arrivals, choosing, comparisons, ending, external, halts, judging, sampling, service
from app.loop.comparisons import BothAnswered
from app.loop.ending import ComparisonEnded
from app.projects.service import ProjectChanging, ProjectCreated
from app.prompts.service import CompletionsStored
from app.rankings.service import RankingStored
from app.registry.service import VersionPromoted
from app.runs.service import RunFinished


def subscribe() -> None:
    """Hear what earlier domains publish."""
    events.subscribe(ProjectCreated, service.begin)
    events.subscribe(ProjectChanging, judging.require_named, only=judging.names_a_judge)
    events.subscribe(CompletionsStored, sampling.make_tasks)
    events.subscribe(RankingStored, comparisons.ranking_stored, only=comparisons.is_compared)
    events.subscribe(VersionPromoted, ending.version_promoted)
    events.subscribe(BothAnswered, judging.both_answered)
    events.subscribe(ComparisonEnded, arrivals.comparison_ended)
    events.subscribe(ComparisonEnded, halts.comparison_ended)
    for module in (arrivals, alternatives, external, comparisons, choosing, judging):
        events.subscribe(RunFinished, module.run_finished)
