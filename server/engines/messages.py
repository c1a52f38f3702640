"""Messages of Flower in processes that Flower did not start.

The only place that touches private names of Flower: a Message can be made only in a process that
says which run, node and task it is.
"""

import os
import traceback

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore import telemetry
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedkd.errors import FedkdError

RUN_ID = 1
SERVER_NODE_ID = 1
FIRST_CLIENT_NODE_ID = 100
CLIENT_APP_RAISED = 2
"""Flower's error code of a ClientApp that raised."""


def introduce_process() -> None:
    """Let this process make messages."""
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = SERVER_NODE_ID
    TaskIdentity.task_id = RUN_ID


def silence_telemetry() -> None:
    """Send nothing to Flower's makers, unless the user has set FLWR_TELEMETRY_ENABLED himself."""
    if "FLWR_TELEMETRY_ENABLED" not in os.environ:
        os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # for the processes that it starts
        telemetry.FLWR_TELEMETRY_ENABLED = "0"


def empty_run() -> Run:
    """A description of the run that says nothing."""
    return Run.create_empty(RUN_ID)


def server_context() -> Context:
    """What a ServerApp is given."""
    return Context(RUN_ID, 0, {}, RecordDict(), {})


def client_context(number: int, num_clients: int) -> Context:
    """What the ClientApp of one client is given."""
    return Context(
        run_id=RUN_ID,
        node_id=FIRST_CLIENT_NODE_ID + number,
        node_config={"partition-id": number, "num-partitions": num_clients},
        state=RecordDict(),
        run_config={},
    )


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """The reply of a client; an error reply if it raises, as Flower's own runtimes send."""
    try:
        return app(message, context)
    except Exception as error:
        return Message(Error(CLIENT_APP_RAISED, reason(error)), reply_to=message)


def reason(error: Exception) -> str:
    """What the server is told of an error: the text that says how to mend it, or the traceback."""
    if isinstance(error, FedkdError):
        return "\n".join([str(error), *getattr(error, "__notes__", ())])
    return traceback.format_exc()
