"""The command line `twofold`. Only `main` lives here, so that `twofold.cli.check` is a library without a command-line parser."""


def main() -> None:
    from twofold.cli.app import app

    app()
