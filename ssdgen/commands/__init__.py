"""The command line, one file per sub-command.  arguments -> spec, plan, emit, tune -> text, files"""

from .main import main

__all__ = ["main"]
