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
"""The newest ones are in constraints/tested.txt; `tests` runs them together."""
TORCH = ("2.6", "2.14")
"""Each has a file of constraints; `tests` runs one in between."""
OPERATOR_LEFT_OUT = {"norse"}
"""Older versions come as sources with a C++ operator, which takes a compiler and three minutes, and
which pip builds against a torch of its own. They do without it."""
WHEEL_BYTES = 1_000_000
"""What the wheel may have at most."""
SINABS = ("sinabs==3.1.3", "pbr==7.1.3", "samna==0.48.6")
"""With what it imports and the other libraries do not."""
TRITON = "triton==3.9.0"
"""No constraint, as torch's CUDA builds bring a version of their own."""
TESTS = ("forward", "native_identity", "neurons", "golden", "versions")
SUITE = [f"tests/test_{name}.py" for name in TESTS]
LAYERS = [
    *SUITE,
    *(f"tests/test_{name}_{library}.py" for name in ("neurons", "versions") for library in OLDER),
    *("tests/test_wrap.py", "tests/test_register.py"),
]
"""All about layers; the newest versions of the libraries take it whole."""


def install(session: nox.Session, *packages: str) -> None:
    """Install at the tested versions; an environment variable reaches build environments too."""
    session.install(*packages, env={"PIP_CONSTRAINT": "constraints/tested.txt"})


def pytest(session: nox.Session, *arguments: str, **environment: str) -> None:
    """One single-threaded process a core."""
    environment = {"OMP_NUM_THREADS": "1", **environment}
    session.run("pytest", "-n", "auto", *arguments, env=environment)


def unpack(session: nox.Session, library: str, version: str, target: Path) -> None:
    """Install a source distribution without building anything: its package and its metadata."""
    if (target / library).is_dir():
        return
    session.install("setuptools", "wheel")  # for pip's look at the metadata
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--no-build-isolation", "--no-binary", library, "--dest", folder]
        session.run("python", "-m", "pip", "download", *options, f"{library}=={version}")
        (archive,) = Path(folder).glob("*.tar.gz")
        shutil.unpack_archive(archive, folder)
        for name in (f"{library}.egg-info", library):
            (source,) = Path(folder).glob(f"*/{name}")
            shutil.copytree(source, target / name)


def beside_tests(session: nox.Session) -> Path:
    """Let an environment see all that is installed in that of `tests`; returns its own packages."""
    everything = Path(session.virtualenv.location).parent / "tests"
    if not everything.is_dir():
        session.run(sys.executable, "-m", "nox", "-s", "tests", "--install-only", external=True)
    (packages,) = everything.glob("lib/python*/site-packages")
    (own,) = Path(session.virtualenv.location).glob("lib/python*/site-packages")
    (own / "shared.pth").write_text(f"{packages}\n")
    return own


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against all three libraries at their newest versions.

    Of each test's cases it takes few that have every pair of settings; `full` takes all of them.
    """
    install(session, f".[{LIBRARIES},dev]")
    pytest(session, *(session.posargs or ["--pairwise"]))
    if not session.posargs:
        pytest(session, "tests/test_golden.py", TSSL_ADAPTERS_ENGINE="cpu")
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
    """Run the GPU's kernels on the CPU, through Triton's interpreter, and compile them.

    Triton is in an environment of its own, as it changes what the libraries do where it is there.
    """
    beside_tests(session)
    session.install("--no-deps", TRITON)
    for file, interpret in (("triton", "1"), ("triton_compiled", "0")):
        session.run(
            *("python", "-m", "pytest", "-n", "auto", "-p", "no:cacheprovider"),
            *(f"tests/test_{file}.py", *session.posargs),
            env={"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": interpret},
        )


@nox.session
def notebooks(session: nox.Session) -> None:
    """Run the tutorials, and hold what they print to what their files keep, but for numbers.

    ``nox -s notebooks -- write`` keeps what they print and draw now.
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
    """Run the layers' suite against an older version of one library.

    An environment of its own, with that version alone; all else it sees in that of `tests`.
    """
    own = beside_tests(session)
    if library in OPERATOR_LEFT_OUT:
        unpack(session, library, version, own)
    else:
        session.install("--no-deps", f"{library}=={version}")
    usage = Path("tests", f"test_versions_{library}.py")
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
    """Run the tests of an adapter that is a package of its own, against the library that it is for.

    All else it sees in the environment of `tests`.
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
    """Put faults into copies of the project, and see whether the tests notice each; not in CI."""
    install(session, f".[{LIBRARIES},dev]")
    session.run("python", "tools/faults.py", *(session.posargs or ["--jobs", "2"]))


@nox.session
@nox.parametrize("version", TORCH, ids=TORCH)
def torch(session: nox.Session, version: str) -> None:
    """Run the layers' suite against another torch, with all three libraries.

    From the registry it is a CUDA build: an environment has up to 6 GB.
    """
    file = f"constraints/torch-{version}.txt"
    tools = ("hypothesis", "pytest", "pytest-xdist", "sybil")
    session.install(f".[{LIBRARIES}]", *tools, env={"PIP_CONSTRAINT": file})
    pytest(session, *(session.posargs or LAYERS))
    if not session.posargs:
        pytest(session, "tests/test_golden.py", TSSL_ADAPTERS_ENGINE="cpu")
        session.run("python", "tools/versions.py", "torch")


@nox.session
def demo(session: nox.Session) -> None:
    """Train a small network in each library, natively and under two rules, and print one table."""
    install(session, f".[{LIBRARIES},examples]")
    session.run("python", "examples/demo.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; a warning, such as a dead link, is an error.

    It reads the package's source without importing it, so torch need not be installed.
    """
    extras = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
    install(session, *extras["docs"])
    environment = {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement of the theme's successor
    session.run("mkdocs", "build", "--strict", *session.posargs, env=environment)


@nox.session(reuse_venv=False)
def readme(session: nox.Session) -> None:
    """Do what README says to a new user: install by its line, then run every Python block.

    Constraints stand in for PyTorch's own line; blocks of the documentation count as README's.
    """
    (line,) = re.findall(r'^python -m pip install ("\..*)$', Path("README.md").read_text(), re.M)
    install(session, *shlex.split(line, comments=True))
    install(session, "pytest", "sybil")  # nothing that a block could use
    session.run("pytest", "-p", "no:cacheprovider", "tests/test_documents.py", *session.posargs)


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
    """Check style, formatting and types."""
    install(session, ".[testing]", "mypy", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
