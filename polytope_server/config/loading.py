"""From files to the one configuration that a process is given.

Every fault that can be found is found before anything is said: one error with a line for each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from polytope_server.config.checking import (
    check_backends,
    check_datasources,
    checked,
    warn_of_doubtful,
    with_defaults,
    with_resolved_collections,
)
from polytope_server.config.compatibility import (
    warn_of_other_types,
    warn_of_what_is_not_read,
    with_auth_o_tron_alone,
    with_new_names,
    with_proxy_of_the_environment,
    without_what_is_gone,
)
from polytope_server.config.expansion import Expansion
from polytope_server.config.findings import Findings
from polytope_server.config.model import Config
from polytope_server.config.reading import NotReadable, read_file
from polytope_server.config.section import place_text
from polytope_server.config.tree import Finding, Node, leaves, merge
from polytope_server.errors import ConfigurationError

SYSTEM_FILE: Final = Path("/etc/polytope/config.yaml")
SYSTEM_VARIABLE: Final = "POLYTOPE_SYSTEM_CONFIG"
"""Of the environment: another file in place of `SYSTEM_FILE`, or none if it is empty."""
BASE_VARIABLE: Final = "POLYTOPE_BASE_CONFIG"
"""Of the environment of what `standalone` starts: the file that it brings, which all others go over."""


def system_file_of(environ: Mapping[str, str], otherwise: Path | None = SYSTEM_FILE) -> Path | None:
    """The file that goes before those that are named, if it is there; None if none is looked for."""
    name = environ.get(SYSTEM_VARIABLE)
    if name is None:
        return otherwise
    return Path(name) if name else None


def are_there(files: Sequence[Path | str], *, environ: Mapping[str, str]) -> bool:
    """Whether the operator says anything: in named files, or in a system file that is there."""
    system_file = system_file_of(environ)
    return bool(files) or (system_file is not None and system_file.exists())


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration that can be used.

    `warnings` are lines for the operator. `origins` says of each value, by its place (such as
    ``frontend.port``), where it comes from: ``FILE:LINE``, ``environment NAME in FILE:LINE``,
    ``file PATH in FILE:LINE`` or ``default``. `tree` is all of it, for `show`.
    """

    config: Config
    warnings: Sequence[str]
    origins: Mapping[str, str] = field(repr=False)
    tree: Node = field(repr=False)


def load(
    files: Sequence[Path | str],
    *,
    environ: Mapping[str, str],
    strict: bool = False,
    system_file: Path | None = SYSTEM_FILE,
    on_read: Callable[[Path], object] = lambda _path: None,
) -> Loaded:
    """The configuration in *system_file*, if it is there, and then *files*, later over earlier.

    Args:
        environ: what ``${NAME}`` is taken from; and see `SYSTEM_VARIABLE` and `BASE_VARIABLE`.
        strict: refuse keys that nobody reads, instead of warning.
        system_file: None if there is none to be looked for.
        on_read: told of each file just before it is read, also of those that are not there.

    Raises:
        ConfigurationError: one line for each fault: file, line, key path, and what would be right.
            No line holds a value that may be a secret.
    """
    findings = Findings(strict=strict)
    expansion = Expansion(
        environ, errors=findings.errors, warnings=findings.warnings, on_read=on_read
    )
    base_file = Path(base) if (base := environ.get(BASE_VARIABLE)) else None
    system_file = system_file_of(environ, system_file)
    tree = expansion.expand(
        merged(files, system_file=system_file, base_file=base_file, on_read=on_read)
    )

    tree = with_new_names(tree, findings)
    tree = without_what_is_gone(tree, findings)
    tree = with_auth_o_tron_alone(tree, findings)
    tree = with_proxy_of_the_environment(tree, environ)
    warn_of_what_is_not_read(tree, findings)
    warn_of_other_types(tree, findings)
    tree = with_defaults(tree)
    tree, unused = with_resolved_collections(tree, findings)

    config, tree = checked(Config, tree, (), findings)
    tree = check_backends(tree, findings)
    tree = check_datasources(tree, unused, findings)
    findings.raise_errors()
    if config is None:
        raise ConfigurationError("The configuration must be a mapping of sections.")
    warn_of_doubtful(config, tree, findings)
    return Loaded(
        config=config,
        warnings=findings.warning_lines(),
        origins={place_text(place): str(leaf.source) for place, leaf in leaves(tree)},
        tree=tree,
    )


def merged(
    files: Sequence[Path | str],
    *,
    system_file: Path | None,
    base_file: Path | None = None,
    on_read: Callable[[Path], object] = lambda _path: None,
) -> Node:
    """All documents of all files, one upon the other, neither expanded nor checked; *base_file* first.

    Raises:
        ConfigurationError: a file is missing or not readable, or there is none.
    """
    errors: list[Finding] = []
    documents: list[Node] = []
    is_there = bool(files)
    named = [Path(name) for name in files]
    for path in filter(None, (base_file, system_file, *named)):
        on_read(path)
        try:
            documents.extend(read_file(path))
            is_there = True
        except FileNotFoundError:
            if path is not system_file:
                errors.append(Finding(f"{path}: there is no such file"))
        except NotReadable as exc:
            errors.extend(exc.findings)
            is_there = True
    if errors:
        raise ConfigurationError("\n".join(map(str, errors)))
    if not is_there:
        raise ConfigurationError(
            f"there is no configuration: name a file with -f FILE, or write {SYSTEM_FILE}"
        )
    tree = Node(value={})
    for document in documents:
        tree = merge(tree, document)
    return tree
