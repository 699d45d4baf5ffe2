"""Apache Beam: the kit's serving engine inside a pipeline.

    results = examples | kit.beam.RunInference(handler, mode="large")     # a handler, ours, Beam's or your own
    results = examples | deployment.to_beam()                             # with the settings found in a notebook

    elements --> ServeDoFn (each Beam worker process) --windows--> one deployment a machine --> elements

Each worker process sends windows of examples to the deployment and goes on reading its bundle; answers are emitted
as they come, each in the window and with the timestamp of its element. In the process that built the pipeline (the
in-memory runner) the deployment is that process's own; the worker processes of a machine share a named deployment,
found by the handler and its settings, which ends by itself when nobody has asked it anything for a while.
"""

from __future__ import annotations

from kit.beams_notebooks import let_pipelines_be_built
from kit.errors import MissingExtra

try:
    import kit.beams_base  # noqa: F401  # before anything that imports Beam's own
    from kit.beam.transform import RunInference
except ImportError as error:
    if (error.name or "").partition(".")[0] != "apache_beam":
        raise
    raise MissingExtra("kit.beam needs Apache Beam: pip install 'serving-kit[beam]'") from error

let_pipelines_be_built()

__all__ = ["RunInference"]
