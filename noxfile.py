import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]
nox.options.error_on_missing_interpreters = True

LIBRARIES = "snntorch,spikingjelly,norse"


def install(session: nox.Session, *packages: str) -> None:
    """Install at the tested versions; an environment variable reaches build environments too."""
    session.install(*packages, env={"PIP_CONSTRAINT": "constraints/tested.txt"})


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against all three libraries, one single-threaded process a core."""
    install(session, f".[{LIBRARIES},dev]")
    session.run("pytest", "-n", "auto", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def demo(session: nox.Session) -> None:
    """Train a small network in each library, natively and with TSSL-BP, and print one table."""
    install(session, f".[{LIBRARIES},examples]")
    session.run("python", "examples/demo.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and types."""
    install(session, ".", "mypy", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
