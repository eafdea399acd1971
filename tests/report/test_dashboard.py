"""optuna-dashboard opens the storage of a search, and shows the trials that the report does."""

from __future__ import annotations

import json
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna_dashboard
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from ssdgen.report import studies
from tests.report import searches


def get(journal: Path, address: str) -> dict:
    """What the dashboard's server answers."""
    application = optuna_dashboard.wsgi(JournalStorage(JournalFileBackend(str(journal))))
    path, _, query = address.partition("?")
    request: dict = {"PATH_INFO": path, "QUERY_STRING": query}
    setup_testing_defaults(request)
    said: list[str] = []
    body = b"".join(application(request, lambda status, *_: said.append(status)))
    assert said == ["200 OK"], said
    return json.loads(body)


@pytest.mark.filterwarnings("ignore")
def test_the_dashboard_shows_what_the_report_does(tmp_path: Path) -> None:
    journal = searches.journal(tmp_path / "tuning.journal")
    (history,) = studies.read(journal)
    (study,) = get(journal, "/api/studies")["study_summaries"]
    assert study["study_name"] == searches.NAME
    found = get(journal, f"/api/studies/{study['study_id']}?after=0")
    assert found["directions"] == ["minimize"]
    done = [trial["values"][0] for trial in found["trials"] if trial["state"] == "Complete"]
    assert done == [time_us for _, time_us in history.trials]
    assert sum(trial["state"] == "Pruned" for trial in found["trials"]) == history.rejected == 1
    assert {"schedule", "num_warps"} <= {param["name"] for param in found["trials"][0]["params"]}
