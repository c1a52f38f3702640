"""What of the log commands show."""

import logging

from server import terminal


def test_of_other_packages_only_warnings_are_shown(capsys):
    terminal.log_to_stderr()
    logging.getLogger("fedkd.data").info("reading")
    logging.getLogger("alembic.plugins").info("setup plugin")
    logging.getLogger("fedkdish").info("no package of ours")
    logging.getLogger("elsewhere").warning("a warning")
    assert capsys.readouterr().err == "reading\na warning\n"
