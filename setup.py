"""Build `relay._speedups` from the Cython sources in _speedups/; everything else is in pyproject.toml.

`RELAY_BUILD` chooses the build:
    release   -O3, the default; runs on every machine of its kind, so no -march=native.
    debug     no optimisation, assertions kept.
    sanitize  debug with gcc's ASan and UBSan; run with LD_PRELOAD=libasan.so and PYTHONMALLOC=malloc.
    coverage  debug with line tracing.
    pure      no extension: relay runs on its native engine.
A failed compile is an error; only `pure` leaves the extension out.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

DEBUG = ("-O0", "-g3", "-UNDEBUG")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


@dataclass(frozen=True)
class Build:
    """Flags of one build: for the compiler, for the linker, and directives for Cython."""

    compile_args: tuple[str, ...]
    link_args: tuple[str, ...] = ()
    macros: tuple[tuple[str, str], ...] = ()
    directives: dict[str, bool] = field(default_factory=dict)


BUILDS = {
    "release": Build(("-O3", "-g1")),
    "debug": Build(DEBUG),
    "sanitize": Build((*DEBUG, *SANITIZE), SANITIZE),
    "coverage": Build(DEBUG, macros=(("CYTHON_TRACE_NOGIL", "1"),), directives={"linetrace": True}),
}


class BuildExtension(build_ext):
    """Translate and compile the extension, or fail with a message that names the way out."""

    def build_extension(self, ext: Extension) -> None:
        from Cython.Build import cythonize
        from Cython.Compiler.Errors import CompileError

        build = BUILDS[chosen]
        try:
            # Cython looks at the sources' times, but not at the directives of its last run: so force.
            [translated] = cythonize(
                [ext],
                include_path=["_speedups"],
                language_level=3,
                compiler_directives=build.directives,
                force=True,
            )
            ext.sources = translated.sources
            super().build_extension(ext)
        except (CompileError, BaseError, CCompilerError, OSError) as error:
            raise BaseError(
                f"relay._speedups was not built: {error}\n"
                "It needs a C compiler and Python's headers (Debian: apt install gcc python3-dev).\n"
                "To install relay without it, on its slower native engine, set RELAY_BUILD=pure."
            ) from error


def extensions(name: str) -> list[Extension]:
    """Return what the build `name` has to compile."""
    if name == "pure":
        print("RELAY_BUILD=pure: no relay._speedups; relay will run on its native engine", file=sys.stderr)
        return []
    if name not in BUILDS:
        raise SystemExit(f"RELAY_BUILD={name}: choose one of {', '.join([*BUILDS, 'pure'])}")
    build = BUILDS[name]
    return [
        Extension(
            "relay._speedups",
            ["_speedups/_speedups.pyx"],
            depends=sorted(glob("_speedups/*.pxi")),
            extra_compile_args=["-Wall", "-Wno-unused-function", *build.compile_args],
            extra_link_args=list(build.link_args),
            define_macros=list(build.macros),
        )
    ]


chosen = os.environ.get("RELAY_BUILD") or "release"
setup(ext_modules=extensions(chosen), cmdclass={"build_ext": BuildExtension})
