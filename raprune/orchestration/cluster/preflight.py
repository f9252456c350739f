"""Check that every node of the cluster can do the job, before any work.

Facts are gathered by short tasks, one on each node at a time, or in this process where the driver's node is the only
one. `problems` judges them. Of what a node writes for it nothing stays, but for marks of empty folders in object stores
that keep such.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from raprune.errors import RapruneError
from raprune.models.given import given_model
from raprune.plugins import is_user_function, load_function
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store

SMALLEST_ROOM = 256 * 2**20
"""Free bytes below which a disk is refused: no room for networks, or for objects that leave the memory."""
LOW_ROOM = 4 * 2**30
"""Free bytes below which the user is warned."""
FULL = 0.95
"""Fraction of its disk above which Ray moves no more objects out of memory."""
ANSWER_S = 120.0
"""Maximum time for a node's answer: a process has to start there, and import the user's code."""
SEEN_S = 5.0
"""Maximum time for a file of another node to appear: network file systems cache for a while that it is missing."""
SAME = ("raprune", "torch", "torchvision", "ray", "optuna")
"""Distributions whose versions change results, or the objects that processes send each other."""

FLAGS = {"output": "output (--output)"}
"""Fields that have a flag."""
TEMPORARY = "Ray's folder"
"""Name of the folder to which Ray moves objects that do not fit into memory."""

_SHOWN = 8
_SIDE_BY_SIDE = 16
"""Number of files that a node looks for at the same time: a request to an object store takes 20 to 50 ms."""


@dataclass(frozen=True)
class Room:
    """A disk that is written to."""

    what: str
    path: str
    free: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """The question for every node."""

    session: str
    """Part of the names of the files that are written for the asking."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Field of the spec -> URI of a folder that all nodes write and read."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Field of the spec -> `package.module:function` of the user's that it names."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Field of the spec -> path, pattern or URI that the nodes read by themselves."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """The answer of a node. Mappings from fields of the spec are empty if all is well."""

    node: str
    failure: str = ""
    """Reason why it gave no other answer."""
    versions: Mapping[str, str] = field(default_factory=dict)
    unwritable: Mapping[str, str] = field(default_factory=dict)
    """Field -> why."""
    unseen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Field -> the nodes whose files are not seen there."""
    rooms: tuple[Room, ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    """Field -> why what it names cannot be imported."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Field -> why what it names cannot be read."""
    made: tuple[str, ...] = ()
    """Folders that were not there before, the innermost first."""


@dataclass(frozen=True)
class Problem:
    """A problem on a node, and its remedy."""

    node: str
    text: str
    hint: str
    fatal: bool = True


def preflight(spec: SearchSpec, store: Store, *, console: Console) -> None:
    """Refuse a job that a node of the cluster cannot do; print what may become short. Its run is, or will be, `store`.

    Raises:
        RapruneError: with everything that stands in the way, on every node.
    """
    asked = question(spec, store)
    found = problems(gather(asked), asked)
    for line in _told([problem for problem in found if not problem.fatal]):
        console.print(line, markup=False, highlight=False)
    fatal = _told([problem for problem in found if problem.fatal])
    if fatal:
        rest = [f"... and {len(fatal) - _SHOWN} more"] if len(fatal) > _SHOWN else []
        lines = "\n".join([*fatal[:_SHOWN], *rest])
        raise RapruneError(
            f"The cluster is not ready for this job:\n{lines}", hint="Nothing was started, and nothing was written."
        )


def question(spec: SearchSpec, store: Store) -> Question:
    """The question for the nodes of the job `spec` with its run in `store`."""
    named = {"model.name": spec.model.name, "data.name": spec.data.name}
    named |= {f"methods[{i}]": name for i, name in enumerate(spec.methods)}
    given = given_model(spec.model)
    if given is not None and given.reference is not None:
        named["model"] = given.reference
    return Question(
        session=uuid.uuid4().hex[:12],
        places={"output": store.uri, "statistics": Store(spec.statistics_folder).uri},
        code={where: name for where, name in named.items() if is_user_function(name)},
        # What is not streamed is read by the driver alone.
        data={"data.train": spec.data.train} if spec.data.stream and spec.data.train else {},
    )


def problems(facts: Sequence[NodeFacts], asked: Question) -> list[Problem]:
    """The problems of all nodes. Pure. The first of `facts` is the driver's, which the others must match."""
    found: list[Problem] = []
    for one in facts:
        if one.failure:
            hint = "Install the same raprune there as on the driver's node, or take the node out of the cluster."
            found.append(Problem(one.node, f"gave no answer: {one.failure}", hint))
            continue
        found += [*_versions_apart(one, facts[0]), *_places_apart(one, asked), *_little_room(one)]
        for where, why in one.code.items():
            hint = f"Install what {where} names on every node, or ship it with the job (a working_dir)."
            found.append(Problem(one.node, why, hint))
        for where, why in one.data.items():
            hint = "A streamed split (data.stream) is read by every node: put it where all see it, or leave stream out."
            found.append(Problem(one.node, f"{where} {asked.data[where]}: {why}", hint))
    return found


def _versions_apart(one: NodeFacts, driver: NodeFacts) -> Iterator[Problem]:
    for name, there in one.versions.items():
        here = driver.versions.get(name, there)
        if here != there:
            yield Problem(one.node, f"{name} {there}, where the driver has {here}.", f"Install {name} {here} there.")


def _places_apart(one: NodeFacts, asked: Question) -> Iterator[Problem]:
    named = {where: f"{FLAGS.get(where, where)} {Store(uri).name}" for where, uri in asked.places.items()}
    for where, why in one.unwritable.items():
        hint = "Give a place that every node can write: a shared folder, or s3://bucket/run."
        yield Problem(one.node, f"{named[where]}: cannot be written: {why}", hint)
    for where, others in one.unseen.items():
        hint = "Give a place that all nodes share: a network file system, or s3://bucket/run."
        yield Problem(one.node, f"{named[where]}: not the folder that {_listed(others)} wrote to.", hint)


def _little_room(one: NodeFacts) -> Iterator[Problem]:
    for room in one.rooms:
        disk, share = f"{room.what} {room.path}", 1 - room.free / room.size
        if room.free < SMALLEST_ROOM:
            text = f"{disk}: {_mib(room.free)} free; at least {_mib(SMALLEST_ROOM)} are needed."
            yield Problem(one.node, text, "Free some, or take another disk.")
        elif room.what == TEMPORARY and share > FULL:
            text = f"{disk}: {share:.0%} full; above {FULL:.0%} Ray moves no objects out of memory."
            yield Problem(one.node, text, "Free some before data or networks outgrow the memory.", fatal=False)
        elif room.free < LOW_ROOM:
            yield Problem(one.node, f"{disk}: only {_mib(room.free)} free.", "It may become full.", fatal=False)


def gather(asked: Question) -> list[NodeFacts]:
    """The answers of all nodes that live through the asking, the driver's own first."""
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    ids = sorted(nodes, key=lambda node_id: (node_id != here, node_id))
    names = _names([nodes[node_id] for node_id in ids])
    folders = [str(Path(nodes[node_id]["RayletSocketName"]).parents[1]) for node_id in ids]
    everywhere: Everywhere = _in_process if ids == [here] else _on_each
    found = everywhere(look, ids, [(asked, name, folder) for name, folder in zip(names, folders, strict=True)])
    facts = [
        NodeFacts(node=name, failure=answer) if isinstance(answer, str) else answer
        for name, answer in zip(names, found, strict=True)
    ]
    alive = [i for i, one in enumerate(facts) if not one.failure]
    living = [ids[i] for i in alive]
    writers = {where: [facts[i].node for i in alive if where not in facts[i].unwritable] for where in asked.places}
    unseen = everywhere(listen, living, [(asked, looked_for(facts[i].node, writers)) for i in alive])
    everywhere(leave, living, [(asked, facts[i].node) for i in alive])
    # When all files are gone: a folder that another node's file is in stays.
    everywhere(tidy, living, [(facts[i].made,) for i in alive])
    for i, answer in zip(alive, unseen, strict=True):
        facts[i] = replace(facts[i], failure=answer) if isinstance(answer, str) else replace(facts[i], unseen=answer)
    # Who was lost over the asking takes no part in the run.
    left = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return [one for node_id, one in zip(ids, facts, strict=True) if not one.failure or node_id in left]


def looked_for(node: str, writers: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Place -> the nodes whose files this node looks for, of the `writers` of each place.

    The first writer, the driver's node as a rule, looks for all files, and each other node for the first writer's: who
    shares a folder with it shares it with all others. So n nodes look for 2 n files, not for n * n.
    """
    return {where: nodes if node in nodes[:1] else nodes[:1] for where, nodes in writers.items()}


Everywhere = Callable[[Callable[..., Any], Sequence[str], Sequence[tuple[Any, ...]]], list[Any]]
"""`(work, ids of nodes, arguments for each)` -> what the work gave on each node, or as text why it gave nothing."""


def _in_process(work: Callable[..., Any], ids: Sequence[str], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [work(*own) for own in arguments]


def _on_each(work: Callable[..., Any], ids: Sequence[str], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    task: Any = ray.remote(work)
    pinned = [NodeAffinitySchedulingStrategy(node_id, soft=False) for node_id in ids]
    references = [
        task.options(num_cpus=0, max_retries=1, scheduling_strategy=strategy).remote(*own)
        for strategy, own in zip(pinned, arguments, strict=True)
    ]
    if not references:
        return []
    done, _ = ray.wait(references, num_returns=len(references), timeout=ANSWER_S)
    return [_answer(reference) if reference in done else _silent(reference) for reference in references]


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except Exception as error:
        # Whatever it is, it is that node's answer.
        cause = getattr(error, "cause", None) or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return f"{type(cause).__name__}: {lines[-1] if lines else ''}"


def _silent(reference: Any) -> str:
    ray.cancel(reference, force=True)
    return f"none within {ANSWER_S:.0f} s"


def look(asked: Question, node: str, temporary: str) -> NodeFacts:
    """The facts of this node. Its files are left for the other nodes to see."""
    made = tuple(folder for uri in asked.places.values() for folder in _missing_folders(uri))
    unwritable, rooms = {}, [_room(TEMPORARY, temporary)]
    for where, uri in asked.places.items():
        try:
            Store(uri).write_bytes(_file(asked, node), node.encode())
        except RapruneError as error:
            unwritable[where] = error.message.rpartition("cannot write: ")[2]
        else:
            if "://" not in uri:
                rooms.append(_room(where, uri))
    return NodeFacts(
        node=node,
        versions=_versions(),
        unwritable=unwritable,
        rooms=tuple(rooms),
        code={where: why for where, name in asked.code.items() if (why := _import_error(name, where))},
        data={where: why for where, uri in asked.data.items() if (why := _read_error(uri))},
        made=made,
    )


def listen(asked: Question, writers: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Place -> the nodes among its `writers` whose files are not seen on this node."""
    until, unseen = time.monotonic() + SEEN_S, {where: tuple(nodes) for where, nodes in writers.items()}
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        while True:
            left: dict[str, tuple[str, ...]] = {}
            for where, nodes in unseen.items():
                seen = pool.map(partial(_sees, asked, asked.places[where]), nodes)
                left[where] = tuple(node for node, is_seen in zip(nodes, seen, strict=True) if not is_seen)
            unseen = {where: nodes for where, nodes in left.items() if nodes}
            if not unseen or time.monotonic() > until:
                return unseen
            time.sleep(0.2)


def leave(asked: Question, node: str) -> None:
    """Remove the files that this node wrote."""
    for uri in asked.places.values():
        with contextlib.suppress(RapruneError):
            Store(uri).remove(_file(asked, node))


def tidy(made: Sequence[str]) -> None:
    """Remove the folders that were made for the files."""
    for folder in made:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _sees(asked: Question, uri: str, node: str) -> bool:
    try:
        store = Store(uri)
        return store.exists(_file(asked, node)) and store.read_bytes(_file(asked, node)) == node.encode()
    except RapruneError:
        return False


def _file(asked: Question, node: str) -> str:
    return f".preflight-{asked.session}-{hashlib.sha256(node.encode()).hexdigest()[:12]}"


def _missing_folders(uri: str) -> list[str]:
    if "://" in uri:
        return []
    return [str(folder) for folder in (Path(uri), *Path(uri).parents) if not folder.exists()]


def _room(what: str, path: str) -> Room:
    folder = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    usage = shutil.disk_usage(folder)
    return Room(what, str(folder), usage.free, usage.total)


def _versions() -> dict[str, str]:
    """Versions of Python, of `SAME`, and of raprune's own code, which may differ under one version."""
    found = {"python": platform.python_version()}
    for name in SAME:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "(not installed)"
    digest, root = hashlib.sha256(), Path(__file__).parents[2]
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found | {"raprune": f"{found['raprune']} (code {digest.hexdigest()[:8]})"}


def _import_error(name: str, where: str) -> str:
    try:
        load_function(name, field=where)
    except RapruneError as error:
        return error.message
    return ""


def _read_error(uri: str) -> str:
    """The reason why this node cannot read the file, folder or pattern; empty if it can."""
    try:
        filesystem, path = (pafs.LocalFileSystem(), uri) if "://" not in uri else pafs.FileSystem.from_uri(uri)
        if set("*?[") & set(path.rpartition("/")[2]):
            path = path.rpartition("/")[0]
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            return "not there."
        if info.is_file:
            with filesystem.open_input_file(path) as file:
                file.read(8)
        elif not filesystem.get_file_info(pafs.FileSelector(path)):
            return "an empty folder."
    except (OSError, pa.ArrowException) as error:
        return f"{str(error).splitlines()[0]}."
    return ""


def _names(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Host names of the nodes, with a part of the id if several nodes have the same name."""
    hosts = [str(node["NodeManagerHostname"]) for node in nodes]
    return [
        f"node {host}" if hosts.count(host) == 1 else f"node {host} ({node['NodeID'][:8]})"
        for host, node in zip(hosts, nodes, strict=True)
    ]


def _told(found: Sequence[Problem]) -> list[str]:
    """A line for each problem, with all nodes that have it."""
    nodes: dict[tuple[str, str], list[str]] = {}
    for problem in found:
        nodes.setdefault((problem.text, problem.hint), []).append(problem.node)
    return [f"  {_listed(own)}: {text} {hint}" for (text, hint), own in nodes.items()]


def _listed(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:3])
    return f"{shown} and {len(nodes) - 3} more" if len(nodes) > 3 else shown


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
