import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = [
    "lint",
    "docs",
    "package",
    "readme",
    "demo",
    "tests",
    "full",
    "notebooks",
    "outside",
    "triton",
    "versions",
]
nox.options.error_on_missing_interpreters = True

LIBRARIES = "snntorch,spikingjelly,norse"
OLDER = {
    "snntorch": ("0.7.0", "0.8.1", "0.9.1", "0.9.4"),
    "spikingjelly": ("0.0.0.0.12", "0.0.0.0.14"),
    "norse": ("0.0.7.post1", "1.0.0"),
}
"""The newest versions are in constraints/tested.txt; `tests` runs them together."""
TORCH = ("2.6", "2.14")
"""Each has a constraints file; `tests` runs one in between."""
OPERATOR_LEFT_OUT = {"norse"}
"""Older versions are source distributions with a C++ operator, which needs a compiler and three
minutes, and which pip builds against its own torch. They work without it."""
WHEEL_BYTES = 1_000_000
"""The maximum size of the wheel."""
SINABS = ("sinabs==3.1.3", "pbr==7.1.3", "samna==0.48.6")
"""With the imports that the other libraries do not have."""
TRITON = "triton==3.9.0"
"""Not in the constraints, as torch's CUDA builds bring their own version."""
TRITON_FAULTS = "triton:"
"""What the names of faults begin with that its session can try."""
SUITE = [
    *(f"tests/engine/test_{name}.py" for name in ("forward", "native_identity", "golden")),
    *(f"tests/adapters/test_{name}.py" for name in ("neurons", "versions")),
]
LAYERS = [
    *SUITE,
    *(
        f"tests/adapters/test_{name}_{library}.py"
        for name in ("neurons", "versions")
        for library in OLDER
    ),
    *("tests/test_wrap.py", "tests/adapters/test_register.py"),
]
"""The layers' tests; the newest versions of the libraries run them in full."""


def install(session: nox.Session, *packages: str) -> None:
    """Install the tested versions; the environment variable also reaches build environments."""
    session.install(*packages, env={"PIP_CONSTRAINT": "constraints/tested.txt"})


def pytest(session: nox.Session, *arguments: str) -> None:
    """Run one single-threaded process per core."""
    session.run("pytest", "-n", "auto", *arguments, env={"OMP_NUM_THREADS": "1"})


def unpack(session: nox.Session, library: str, version: str, target: Path) -> None:
    """Install a source distribution without building it: only its package and metadata."""
    if (target / library).is_dir():
        return
    session.install("setuptools", "wheel")  # pip needs them to read the metadata
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--no-build-isolation", "--no-binary", library, "--dest", folder]
        session.run("python", "-m", "pip", "download", *options, f"{library}=={version}")
        (archive,) = Path(folder).glob("*.tar.gz")
        shutil.unpack_archive(archive, folder)
        for name in (f"{library}.egg-info", library):
            (source,) = Path(folder).glob(f"*/{name}")
            shutil.copytree(source, target / name)


def beside_tests(session: nox.Session) -> Path:
    """Let an environment see everything installed in that of `tests`; returns its own packages."""
    everything = Path(session.virtualenv.location).parent / "tests"
    if not everything.is_dir():
        session.run(sys.executable, "-m", "nox", "-s", "tests", "--install-only", external=True)
    (packages,) = everything.glob("lib/python*/site-packages")
    (own,) = Path(session.virtualenv.location).glob("lib/python*/site-packages")
    (own / "shared.pth").write_text(f"{packages}\n")
    return own


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against all three libraries in their newest versions.

    Of each test's cases, a few are run that cover every pair of settings, or each setting where the
    test is marked `singly`; `full` runs all.
    """
    install(session, f".[{LIBRARIES},dev]")
    # File by file: a loop is compiled once in each process that uses it.
    pytest(session, *(session.posargs or ["--pairwise", "--dist", "loadfile"]))
    if not session.posargs:
        session.run("python", "tools/versions.py", "torch", *LIBRARIES.split(","))


@nox.session
def full(session: nox.Session) -> None:
    """Run every case of every test, in the environment of `tests`."""
    beside_tests(session)
    # As a module: the environment has no scripts of its own.
    command = ("python", "-m", "pytest", "-n", "auto", *session.posargs)
    session.run(*command, env={"OMP_NUM_THREADS": "1"})


@nox.session
def triton(session: nox.Session) -> None:
    """Run the GPU kernels on the CPU, through Triton's interpreter, and compile them.

    Triton has its own environment, as its presence changes what the libraries do.
    ``nox -s triton -- faults`` puts faults into the kernels instead, as `faults` does elsewhere.
    """
    beside_tests(session)
    session.install("--no-deps", TRITON)
    if session.posargs == ["faults"]:
        command = ("python", "tools/faults.py", "--only", TRITON_FAULTS)
        session.run(*command, env={"TRITON_INTERPRET": "1"})
        return
    for files, interpret in ((("triton", "triton_cells"), "1"), (("triton_compiled",), "0")):
        session.run(
            *("python", "-m", "pytest", "-n", "auto", "-p", "no:cacheprovider"),
            *(*(f"tests/engine/test_{file}.py" for file in files), *session.posargs),
            env={"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": interpret},
        )


@nox.session
def notebooks(session: nox.Session) -> None:
    """Run the tutorials, and compare their output with what is stored, except for numbers.

    ``nox -s notebooks -- write`` stores the current output and plots.
    """
    beside_tests(session)
    install(session, "ipykernel", "nbconvert", "nbval")
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    if session.posargs == ["write"]:
        files = map(str, sorted(Path("docs/tutorials").glob("*.ipynb")))
        options = ["--execute", "--inplace", "--ExecutePreprocessor.record_timing=False"]
        session.run("jupyter", "nbconvert", "--to", "notebook", *options, *files, env=here)
        return
    options = ["-p", "no:cacheprovider", "--nbval", "--nbval-sanitize-with", "tests/notebooks.cfg"]
    options += ["--dist", "loadfile", "docs/tutorials", *session.posargs]
    session.run("python", "-m", "pytest", "-n", "auto", *options, env=here)


@nox.session
@nox.parametrize(
    ("library", "version"),
    [(library, version) for library, versions in OLDER.items() for version in versions],
    ids=[f"{library}-{version}" for library, versions in OLDER.items() for version in versions],
)
def versions(session: nox.Session, library: str, version: str) -> None:
    """Run the layers' tests against an older version of one library.

    The environment contains only that version; the rest comes from that of `tests`.
    """
    own = beside_tests(session)
    if library in OPERATOR_LEFT_OUT:
        unpack(session, library, version, own)
    else:
        session.install("--no-deps", f"{library}=={version}")
    usage = Path("tests", "adapters", f"test_versions_{library}.py")
    suite = [*SUITE, str(usage)] if usage.is_file() else SUITE
    pytest_options = ["-p", "no:cacheprovider", "-k", library, *suite]
    session.run(
        *("python", "-m", "pytest", "-n", "auto", *pytest_options, *session.posargs),
        env={"OMP_NUM_THREADS": "1"},
    )
    if not session.posargs:
        session.run("python", "tools/versions.py", library)


@nox.session
def outside(session: nox.Session) -> None:
    """Run the tests of an adapter that is a separate package, against its library.

    The rest comes from the environment of `tests`.
    """
    beside_tests(session)
    session.install("--no-deps", *SINABS)
    session.install("--no-deps", "./examples/adapter_for_sinabs")
    session.chdir("examples/adapter_for_sinabs")
    session.run(
        *("python", "-m", "pytest", "-n", "auto", "-p", "no:cacheprovider", *session.posargs),
        env={"OMP_NUM_THREADS": "1"},
    )


@nox.session
def faults(session: nox.Session) -> None:
    """Put faults into copies of the project, and check that the tests notice each; not in CI."""
    install(session, f".[{LIBRARIES},dev]")
    options = session.posargs or ["--jobs", "2", "--skip", TRITON_FAULTS]
    session.run("python", "tools/faults.py", *options)


@nox.session
@nox.parametrize("version", TORCH, ids=TORCH)
def torch(session: nox.Session, version: str) -> None:
    """Run the layers' tests against another torch, with all three libraries.

    The registry's torch is a CUDA build, so an environment takes up to 6 GB.
    """
    file = f"constraints/torch-{version}.txt"
    tools = ("hypothesis", "pytest", "pytest-xdist", "sybil")
    session.install(f".[{LIBRARIES}]", *tools, env={"PIP_CONSTRAINT": file})
    pytest(session, *(session.posargs or LAYERS))
    if not session.posargs:
        session.run("python", "tools/versions.py", "torch")


@nox.session
def demo(session: nox.Session) -> None:
    """Train a small network in each library, natively and under two rules, and print a table."""
    install(session, f".[{LIBRARIES},examples]")
    session.run("python", "examples/demo.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; a warning, such as a dead link, is an error.

    The package's source is read without importing it, so torch need not be installed.
    """
    extras = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
    install(session, *extras["docs"])
    environment = {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement of the theme's successor
    session.run("mkdocs", "build", "--strict", *session.posargs, env=environment)


@nox.session(reuse_venv=False)
def readme(session: nox.Session) -> None:
    """Do what README tells a new user: install by its command, then run every Python block.

    Constraints replace PyTorch's own install line; blocks in the documentation are included.
    """
    (line,) = re.findall(r'^python -m pip install ("\..*)$', Path("README.md").read_text(), re.M)
    install(session, *shlex.split(line, comments=True))
    install(session, "pytest", "sybil")  # nothing that a block could need
    options = ("-p", "no:cacheprovider", *session.posargs)
    session.run("pytest", "tests/project/test_documents.py", *options)


@nox.session
def package(session: nox.Session) -> None:
    """Build the source distribution and the wheel; check contents, size and metadata."""
    install(session, "build", "check-wheel-contents", "twine")
    with tempfile.TemporaryDirectory() as folder:
        constraints = {"PIP_CONSTRAINT": str(Path("constraints/tested.txt").absolute())}
        session.run("python", "-m", "build", "--outdir", folder, env=constraints)
        (wheel,) = Path(folder).glob("*.whl")
        session.run("twine", "check", "--strict", *map(str, Path(folder).iterdir()))
        whole = ("--package", "tssl_adapters", "--toplevel", "tssl_adapters")
        session.run("check-wheel-contents", "--no-config", *whole, str(wheel))
        if (size := wheel.stat().st_size) > WHEEL_BYTES:
            session.error(
                f"The wheel has {size} bytes, more than {WHEEL_BYTES}: what came into it?"
            )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, types, and that imports point one way."""
    install(session, ".[testing]", "import-linter", "mypy", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports", "--no-logo")
