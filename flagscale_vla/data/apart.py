"""Importing this puts the process into a group of its own; only the server that readers are forked from does.

Launchers and terminals signal whole groups. The trainer answers by saving a checkpoint, and needs its readers until
then.
"""

from __future__ import annotations

import os

os.setpgrp()
