"""Every setting of every job, as dataclasses with their checks. Imports no torch."""
