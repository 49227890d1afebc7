"""`medclip-jax train` in which one process stops working, and does not die.

STALL=WHERE FROM_STEP=N python -m stalling_train [arguments of train], with WHERE
  input        no batch comes any more
  before_save  it does not come to save
"""

import os
import sys
import threading

import jax

from medclip_jax import cli, train
from medclip_jax.inputs import reader

FROM_STEP = int(os.environ["FROM_STEP"])


def stalls() -> bool:
    return jax.process_index() == jax.process_count() - 1


def wait_for_ever() -> None:
    threading.Event().wait()


def stall_input() -> None:
    batch = reader.TrainInput.batch

    def stalled(self, step):
        if stalls() and step >= FROM_STEP:
            wait_for_ever()
        return batch(self, step)

    reader.TrainInput.batch = stalled


def stall_before_save() -> None:
    due_after = train.due_after

    def stalled(step, config, can_evaluate):
        due = due_after(step, config, can_evaluate)
        if stalls() and due.save and step >= FROM_STEP:
            wait_for_ever()
        return due

    train.due_after = stalled


if __name__ == "__main__":
    {"input": stall_input, "before_save": stall_before_save}[os.environ["STALL"]]()
    sys.exit(cli.run(train.main))
