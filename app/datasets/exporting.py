"""A dataset as a file, for pages and API."""

from __future__ import annotations

from functools import partial
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import StreamingResponse

from app.datasets import service
from app.datasets.models import Dataset
from app.projects.models import Project
from app.web import stream


def download(request: Request, dataset: Dataset, project: Project) -> StreamingResponse:
    """A dataset's lines as a file. `ETag` is the SHA-256 of the whole."""
    name = f"{project.slug}-dataset-{dataset.number}.jsonl"
    return stream(
        request,
        partial(service.stream_lines, dataset_id=dataset.id),
        etag=f'"{dataset.sha256}"',
        content_disposition=f"attachment; filename*=UTF-8''{quote(name, safe='')}",
    )
