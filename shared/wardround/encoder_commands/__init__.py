"""`wardround encoder ...`: one file a command. A consortium makes an encoder's file, and a hospital looks at it."""

from wardround.command import Command, Commands, Journey
from wardround.plugins import Kind

app = Commands(
    "encoder",
    help="Encoders that a consortium brings: look at one, make one of a public network.",
    kind=Kind[Command]("command", "wardround.encoder_commands", "command", "wardround.encoder.commands"),
    place=4,
    panels=("Look", "Make"),
    journeys=(Journey("Bring an encoder", ("import", "inspect")),),
)
