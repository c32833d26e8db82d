"""What surrounds a Segment call: device, page, campaign and the rest of `context` (reference segment.md 1.4)."""

from marshmallow import INCLUDE, Schema, fields

from schemas.fields import Part, flag, number, object_, text


class Open(Schema):
    class Meta:
        unknown = INCLUDE

    error_messages = {"type": "expected an object"}


class App(Open):
    name = text()
    version = text()
    build = text()
    namespace = text()
    platform = text()


class Device(Open):
    id = text()
    advertisingId = text()
    adTrackingEnabled = flag()
    manufacturer = text()
    model = text()
    name = text()
    type = text()
    version = text()
    token = text()


class Library(Open):
    name = text()
    version = text()


class Location(Open):
    city = text()
    country = text()
    region = text()
    latitude = number()
    longitude = number()
    speed = number()


class Network(Open):
    bluetooth = flag()
    carrier = text()
    cellular = flag()
    wifi = flag()


class OperatingSystem(Open):
    name = text()
    version = text()


class Page(Open):
    path = text()
    referrer = text()
    search = text()
    title = text()
    url = text()


class Referrer(Open):
    id = text()
    type = text()
    name = text()
    url = text()
    link = text()


class Screen(Open):
    width = number()
    height = number()
    density = number()


class UserAgentData(Open):
    mobile = flag()
    platform = text()
    architecture = text()
    bitness = text()
    model = text()
    platformVersion = text()
    uaFullVersion = text()
    wow64 = flag()


class Context(Open):
    active = flag()
    app = Part(App, allow_none=True)
    campaign = object_()
    device = Part(Device, allow_none=True)
    ip = text()
    library = Part(Library, allow_none=True)
    locale = text()
    location = Part(Location, allow_none=True)
    network = Part(Network, allow_none=True)
    os = Part(OperatingSystem, allow_none=True)
    page = Part(Page, allow_none=True)
    referrer = Part(Referrer, allow_none=True)
    screen = Part(Screen, allow_none=True)
    timezone = text()
    groupId = text()
    traits = object_()
    userAgent = text()
    userAgentData = Part(UserAgentData, allow_none=True)
    amp = object_()
    externalIds = fields.List(object_(), allow_none=True, error_messages={"invalid": "expected an array"})
    integration = object_()
    personas = object_()
    consent = object_()
    protocols = fields.Raw(allow_none=True)
    violations = fields.Raw(allow_none=True)
    channel = text()
