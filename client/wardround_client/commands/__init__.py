"""`wardround hospital ...`: one file a command, found by its name. Heavy imports wait until a command needs them."""

from wardround.command import Command, Commands, Journey
from wardround.plugins import Kind

app = Commands(
    "hospital",
    help="A hospital: its images stay here, private answers leave.",
    kind=Kind[Command]("command", "wardround_client.commands", "command", "wardround.hospital.commands"),
    place=2,
    panels=("Set up", "Take part", "Use at home", "Look", "Repair"),
    journeys=(
        Journey("Take part", ("setup", "approve", "up")),
        Journey("Use it at home", ("adapt", "evaluate", "predict", "suggest", "export", "serve")),
        Journey("See what left", ("page", "status", "ledger", "audit")),
    ),
)
