"""`wardround coordinator ...`: one file a command, found by its name. Heavy imports wait until a command needs them."""

from wardround.command import Command, Commands, Journey
from wardround.plugins import Kind

app = Commands(
    "coordinator",
    help="The coordinator: it asks hospitals and never sees a patient.",
    kind=Kind[Command]("command", "wardround_server.commands", "command", "wardround.coordinator.commands"),
    place=3,
    panels=("Set up", "Run", "Maintain"),
    journeys=(Journey("Run a federation", ("init", "up", "invite", "register", "check", "run", "report")),),
)
