"""A sandbox project behind its own doors: scenarios are sent, and their outcome read, by HTTP alone."""

from typing import Any

import flask
import orjson

from adapter.sandbox import endpoints
from adapter.sandbox.project import Project

NOW_S = 1_790_000_000
DAY_S = 86_400
TOKEN = "the-token"


class Doors:
    """The doors of one project. Events are numbered from 1 in the order in which they arrive."""

    def __init__(self, project: Project) -> None:
        app = flask.Flask("test")
        views = endpoints.blueprint(project, token=TOKEN, service_account=None, clock=lambda: NOW_S)
        app.register_blueprint(views)
        self.app, self.http, self._sent = app, app.test_client(), 0

    def event(self, name: str = "E", *, ago_s: int = 0, **properties: Any) -> dict[str, Any]:
        """One event; d, u and id are $device_id, $user_id and distinct_id, as the reference writes them."""
        self._sent += 1
        names = {"d": "$device_id", "u": "$user_id", "id": "distinct_id"}
        given = {names.get(key, key): value for key, value in properties.items()}
        time = NOW_S - 60_000 + self._sent - ago_s
        return {"event": name, "properties": {"time": time, "$insert_id": f"n-{self._sent}"} | given}

    def arrive(self, *events: dict[str, Any], door: str = "/import") -> None:
        """Post events in one request, all of which are taken; to /track with the token in each."""
        if door == "/track":
            tokened = [{**one, "properties": {**one["properties"], "token": TOKEN}} for one in events]
            assert self.http.post("/track", json=tokened).text == "1"
            return
        answer = self.http.post("/import", json=list(events), auth=(TOKEN, ""))
        assert answer.status_code == 200, answer.text
        assert answer.json["num_records_imported"] == len(events)

    def set_profile(self, distinct_id: str, root: dict[str, Any] | None = None, **properties: Any) -> None:
        """Set properties of a profile; `root`: what stands beside the operation."""
        update = {"$token": TOKEN, "$distinct_id": distinct_id, "$set": properties} | (root or {})
        assert self.http.post("/engage?strict=1", json=[update]).text == "1"

    def get(self, path: str, **query: Any) -> Any:
        answer = self.http.get(path, query_string=query, auth=(TOKEN, ""))
        assert answer.status_code == 200, answer.text
        return answer

    def export(self) -> list[dict[str, Any]]:
        """Every event as an export shows it, in order of arrival."""
        return [orjson.loads(line) for line in self.get("/events").data.splitlines()]

    def persons(self) -> list[str]:
        """The person of each ordinary event, in order of arrival."""
        return [one["properties"]["distinct_id"] for one in self.export() if one["event"] == "E"]

    def clusters(self) -> list[set[str]]:
        """The ids of each person, whichever of them is the canonical one; by their smallest."""
        people = self.get("/people", limit=1000).json["people"]
        return sorted(({one["id"], *one["members"]} for one in people), key=min)

    def profiles(self) -> dict[str, dict[str, Any]]:
        """The properties that show, by canonical id."""
        return {one["id"]: one["properties"] for one in self.get("/people").json["people"]}

    def failures(self) -> list[str | None]:
        """Why each verb was refused, in order of arrival; None: it was not."""
        return [one["properties"].get("$failure_reason") for one in self.export() if one["event"] != "E"]
