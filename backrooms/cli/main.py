"""The `backrooms` command. A subcommand's module is imported when it is run, so that all start fast."""

from __future__ import annotations

from importlib import import_module

import click

from backrooms import __version__

COMMANDS = {
    "status": ("backrooms.cli.status", "Show how a node is doing."),
    "circuits": ("backrooms.cli.circuits", "Show a node's circuits and their paths."),
    "relays": ("backrooms.cli.relays", "Show the relays that a node knows."),
    "investigate": ("backrooms.cli.investigate", "Find relays that do harm."),
    "path": ("backrooms.cli.path", "Say why paths are chosen, and what levels give."),
    "route": ("backrooms.cli.path", "Show what a circuit goes through."),
    "newnym": ("backrooms.cli.circuits", "Use new circuits from now on."),
    "testnet": ("backrooms.cli.testnet", "Run a whole network on this machine."),
    "keys": ("backrooms.cli.keys", "Make, show and revoke the keys of a node."),
    "network": ("backrooms.cli.keys", "Make and show network files."),
    "charter": ("backrooms.cli.charter", "Let relays into a private network."),
    "geo": ("backrooms.cli.geo", "Make and ask the table of countries and networks."),
}
"""Every subcommand: the module with a click command of its name, and what the list of commands says of it."""


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="backrooms %(version)s")
def main() -> None:
    """Ask and steer a Backrooms node, or run a whole network on this machine.

    \b
    First steps:
      backrooms testnet                  a local network, with a line for curl to try
      twistd -n backrooms -c FILE        a node
      backrooms status -c FILE           is it ready?
      backrooms COMMAND --help           what else there is

    A node is found by --control ADDRESS, --testnet DIR or -c FILE; without these by the variable
    BACKROOMS_CONTROL, then by the backrooms.toml in this folder, then by that in /etc/backrooms.

    Exit status: 0 done, 1 error, 2 wrong usage, 3 the node is not running.
    """


if __name__ == "__main__":
    main()
