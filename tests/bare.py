"""A Python that finds few packages, for what has to run on a machine that has no more."""

import sys

_SCRIPT = """
import runpy, sys
known = set(sys.argv.pop(1).split(",")) | set(sys.stdlib_module_names)
known |= {"jax", "jaxlib", "jax_plugins", "flax", "numpy", "ml_dtypes", "scipy", "opt_einsum", "matplotlib",
         "mpl_toolkits", "contourpy", "cycler", "dateutil", "kiwisolver", "packaging", "PIL", "pyparsing", "fontTools",
         "six", "zoo", "benchmarks"}
class Finder:
    def __init__(self, inner):
        self.inner = inner
    def find_spec(self, name, path=None, target=None):
        own = name.split(".")[0] in known or name.startswith("_")
        return self.inner.find_spec(name, path, target) if own else None
    def __getattr__(self, name):
        return getattr(self.inner, name)
sys.meta_path = [Finder(finder) for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def bare_python(*also: str) -> list[str]:
    """The beginning of a command: beside jax, flax, numpy, matplotlib and what they need, only `also` is found."""
    return [sys.executable, "-c", _SCRIPT, ",".join(also)]
