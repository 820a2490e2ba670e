"""Python runs this when it starts, because `plugin` puts this folder on the PYTHONPATH of what tests start."""

import os

import network_guard

if network_guard.LOG in os.environ:
    network_guard.install()
