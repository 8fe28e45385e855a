"""Rewards of a user's own file, imported in a process of its own: nothing heavy here."""

import os
import re
import time


def length(completion, question):
    return len(completion)


def wild(completion, question):
    """A regular expression that never ends on some texts, and holds the interpreter meanwhile."""
    return 1.0 if re.match(r"(a+)+$", completion) else 0.0


def sleepy(completion, question):
    time.sleep(30 if completion == "slow" else 0)
    return 1


def broken(completion, question):
    raise KeyError("colour")


def wordy(completion, question):
    return "good"


def dying(completion, question):
    os._exit(3)


def absent(completion, question):
    return None if completion == "none" else float(completion)


def process(completion, question):
    return float(os.getpid())
