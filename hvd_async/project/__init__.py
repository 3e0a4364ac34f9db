"""The files that `hvd-async init` gives to a beginner: those of a small project, complete, and the commands that use them."""

from hvd_async.project.project import KINDS, Project, ProjectKind

__all__ = ["KINDS", "Project", "ProjectKind"]
