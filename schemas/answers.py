"""What Mixpanel answers (reference mixpanel.md 2.2.2, 2.4, 5.1)."""

from typing import Any

from marshmallow import EXCLUDE, Schema, fields, pre_load, validate

from schemas.fields import Text


class FailedRecord(Schema):
    """One record that Mixpanel refused; its id is spelt in two ways (mixpanel.md 2.2.2)."""

    class Meta:
        unknown = EXCLUDE

    index = fields.Integer(strict=True, load_default=None, allow_none=True)
    insert_id = fields.Raw(data_key="$insert_id", load_default=None)
    insert_id_openapi = fields.Raw(data_key="insert_id", load_default=None)
    field = fields.String(load_default="", allow_none=True)
    message = fields.String(load_default="", allow_none=True)


class Failed(fields.Field[Any]):
    """A failed record as an object, or as the bare text that identity verbs get (mixpanel.md 1.2.5)."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, Any]:
        if isinstance(value, str):
            value = {"message": value}
        loaded: dict[str, Any] = FailedRecord().load(value)
        loaded["insert_id"] = loaded["insert_id"] or loaded["insert_id_openapi"]
        return loaded


class ImportAnswer(Schema):
    """The body of an answer by /import (mixpanel.md 2.2.2)."""

    class Meta:
        unknown = EXCLUDE

    code = fields.Integer(load_default=None, allow_none=True)
    num_records_imported = fields.Integer(load_default=None, allow_none=True)
    error = fields.Raw(load_default=None)
    failed_records = fields.List(Failed(), load_default=list)


class UpdateAnswer(Schema):
    """The body of an answer by /engage and /groups: 200 even when the updates failed (mixpanel.md 2.4)."""

    class Meta:
        unknown = EXCLUDE

    status = Text(required=True, validate=validate.OneOf(["0", "1", "OK", "Bad Request"]))
    error = fields.Raw(load_default=None)
    num_good_events = fields.Integer(load_default=None)


class OfDeletions(Schema):
    """An answer about data deletions: the object itself, one under `results`, or the first of a list (5.1)."""

    class Meta:
        unknown = EXCLUDE

    @pre_load
    def _unwrap(self, data: Any, **_kwargs: Any) -> Any:
        if isinstance(data, dict) and "results" in data:
            data = data["results"]
        return data[0] if isinstance(data, list) and data else data


class DeletionAnswer(OfDeletions):
    """The body of an answer to a request for deletion; what it is tracked by has two names (mixpanel.md 5.1)."""

    task_id = Text(load_default=None)
    tracking_id = Text(load_default=None)


class DeletionStatus(OfDeletions):
    """The body of an answer about a request (mixpanel.md 5.1)."""

    status = Text(
        required=True,
        validate=validate.OneOf(
            ["PENDING", "STAGING", "STARTED", "SUCCESS", "FAILURE", "REVOKED", "NOT_FOUND", "UNKNOWN"]
        ),
    )
