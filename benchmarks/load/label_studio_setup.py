"""Label Studio's side: tables, people, a ranking project, tasks. Runs in Label Studio's own environment.

    python load/label_studio_setup.py FOLDER NUM_TASKS NUM_PEOPLE

Writes FOLDER/people.json, and to standard output the project's number and where the code lies. The database is named in
POSTGRE_* variables.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

CONFIG = """<View>
  <Text name="prompt" value="$prompt"/>
  <List name="answers" value="$answers" title="Answers"/>
  <Ranker name="order" toName="answers"/>
</View>"""
WORDS = "a reader would say that this answer is to the point and says what was asked for in as few words as it can"


def code_folder() -> Path:
    """Where Label Studio lies: its Django project takes this folder for its root."""
    spec = find_spec("label_studio")
    if spec is None or spec.origin is None:
        sys.exit("label-studio is not installed in this environment")
    return Path(spec.origin).parent


def main(folder: Path, num_tasks: int, num_people: int) -> None:
    """Migrate, then make it all."""
    sys.path.insert(0, str(code_folder()))
    import django  # type: ignore[import-not-found,unused-ignore]

    django.setup()
    from django.core.management import call_command  # type: ignore[import-not-found,unused-ignore]

    call_command("migrate", verbosity=0)
    from organizations.models import Organization  # type: ignore[import-not-found,unused-ignore]
    from projects.models import Project  # type: ignore[import-not-found,unused-ignore]
    from rest_framework.authtoken.models import Token  # type: ignore[import-not-found,unused-ignore]
    from tasks.models import Task  # type: ignore[import-not-found,unused-ignore]
    from users.models import User  # type: ignore[import-not-found,unused-ignore]

    people = [User.objects.create_user(email=f"p{n}@example.org", password=None) for n in range(num_people)]
    organization = Organization.create_organization(created_by=people[0], title="Bench", legacy_api_tokens_enabled=True)
    for person in people:
        if person is not people[0]:
            organization.add_user(person)
        person.active_organization = organization
        person.save()
    project = Project.objects.create(
        title="Bench",
        label_config=CONFIG,
        maximum_annotations=1,
        sampling=Project.SEQUENCE,
        created_by=people[0],
        organization=organization,
    )
    Task.objects.bulk_create(
        [Task(project=project, data=data_of(number), overlap=1, inner_id=number + 1) for number in range(num_tasks)],
        batch_size=1000,
    )
    tokens = [{"token": Token.objects.get_or_create(user=person)[0].key} for person in people]
    (folder / "people.json").write_text(json.dumps(tokens), encoding="utf-8")
    print(project.id, code_folder())


def data_of(number: int) -> dict[str, object]:
    """As large as Rankloop's task of the same number."""
    answers = [
        {"id": f"{number}-{k}", "title": f"Answer {k}", "body": f"Answer {k} to {number}: **{WORDS}** and {WORDS}"}
        for k in range(4)
    ]
    return {"prompt": f"Question {number}: {WORDS}", "answers": answers}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
