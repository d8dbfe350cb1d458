from __future__ import annotations

import hypothesis

pytest_plugins = ["ecr_parts.testing.pytest_plugin"]

# No test is timed; and CI draws the same examples each time, so that a failure is a change's own.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")
