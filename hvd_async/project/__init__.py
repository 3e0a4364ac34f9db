"""What `hvd-async init` gives to a beginner: the files of a small project, complete, and the commands that use them."""

from hvd_async.project.project import KINDS, Project, ProjectKind

__all__ = ["KINDS", "Project", "ProjectKind"]
