"""What can be asked of a sandbox project over HTTP? GET /people, /events and /funnel; DELETE /events.

These doors are ours, not Mixpanel's, whose own want an account. They want the credentials of /import.
"""

from collections.abc import Iterator

import flask
import orjson

from adapter.sandbox import counting, funnel
from adapter.sandbox.project import Project

MAX_PEOPLE = 1_000
#: What each question takes. A slip such as `windows=1d` would be answered as if it were not there.
OF_PEOPLE = ("after", "limit")
OF_A_FUNNEL = ("step", "window", "totals", "optimized", "by", "from", "to")


def add(doors: flask.Blueprint, project: Project) -> None:
    """Add the doors that read a project, and the one that empties it."""

    @doors.get("/people")
    def people() -> flask.Response:
        """`after`: the id to go on after; `limit`. `next` is the id for the next request, null at the end."""
        if odd := _unknown(OF_PEOPLE):
            return _refused(odd)
        limit = flask.request.args.get("limit", "100")
        if not limit.isascii() or not limit.isdigit() or not 0 < int(limit[:9]) <= MAX_PEOPLE:
            return _refused(f"limit must be a number from 1 to {MAX_PEOPLE}")
        found = project.people(flask.request.args.get("after", ""), int(limit))
        rows = [
            {"id": one.id, "members": one.members, "properties": one.properties, "events": one.events}
            for one in found
        ]
        following = found[-1].id if len(found) == int(limit) else None
        return _json({"identity": project.identity, "people": rows, "next": following})

    @doors.get("/events")
    def events() -> flask.Response:
        """Every event, one a line, as Mixpanel's raw export shows them, but each once."""

        def lines() -> Iterator[bytes]:
            for one in project.events():
                yield orjson.dumps({"event": one.event, "properties": one.properties}) + b"\n"

        return flask.Response(lines(), mimetype="application/x-ndjson")

    @doors.delete("/events")
    def delete_events() -> flask.Response:
        project.delete_events()
        return _json({"status": "OK"})

    @doors.get("/funnel")
    def ask_funnel() -> flask.Response:
        """`step` twice or more; all else as the options of `adapter funnel` are called."""
        asked = flask.request.args
        if odd := _unknown(OF_A_FUNNEL):
            return _refused(odd)
        try:
            from_ms, to_ms = funnel.parse_range(asked.get("from"), asked.get("to"))
            question = funnel.Question(
                steps=tuple(funnel.parse_step(step) for step in asked.getlist("step")),
                window_s=funnel.parse_window(asked["window"]) if "window" in asked else funnel.WINDOW_S,
                totals=asked.get("totals", "0") not in ("", "0"),
                optimized=asked.get("optimized", "0") not in ("", "0"),
                by=asked.get("by") or None,
                from_ms=from_ms,
                to_ms=to_ms,
            )
        except ValueError as error:
            return _refused(str(error))
        return _json(counting.as_json(project.funnel(question)))


def _unknown(names: tuple[str, ...]) -> str | None:
    odd = [name for name in flask.request.args if name not in (*names, "project_id")]
    return f"expected parameters among {', '.join(names)}; found {', '.join(odd)}" if odd else None


def _json(value: object) -> flask.Response:
    return flask.Response(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE), mimetype="application/json")


def _refused(error: str) -> flask.Response:
    body = orjson.dumps({"code": 400, "error": error, "status": "Bad Request"})
    return flask.Response(body, 400, mimetype="application/json")
