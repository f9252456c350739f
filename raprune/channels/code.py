"""Sizes in Python code that a cut lets PyTorch compute: one argument of a reshape becomes -1.

Attention often takes the number of channels from its input, `B, N, C = x.shape`, and uses it for the heads:
`q.reshape(B, N, heads, C // heads)`. After a cut of heads or widths that number is another one. A reshape that ran
gives the same result if one of its sizes is -1, so this change of the code means the same for the dense network; for
cut networks it is proved like everything else in a graph. The code is changed on a class of its own for the modules of
a cut network; the user's class stays as it is.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import operator
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import nn

from raprune.channels.members import CodeEdit
from raprune.errors import RecipeError

_RESHAPES = ("reshape", "view")
_OURS = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
"""Folders whose code is not the network's."""
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class Reshape:
    """One reshape of heads that ran in a trace."""

    module: str
    """Name of the module that was running."""
    code: CodeType
    """Code of the function that called it."""
    end: tuple[int, int]
    """Last line and column of the call."""
    channels: tuple[int, ...]
    """Axes of the result along which the channels change."""
    rank: int
    source: int = -1
    """Axis of the reshaped tensor whose size the channels have, where another size of the reshape is -1."""
    same: tuple[tuple[int, int], ...] = ()
    """Axes of the result that are axes of the reshaped tensor, which follow."""
    roots: tuple[tuple[str, float], ...] = ()
    """Powers of the number of channels in the function, and their values: the scales of attention."""


def reshape_here(
    module: str, channels: Sequence[int], rank: int, same: Iterable[tuple[int, int]] = ()
) -> Reshape | None:
    """Return the reshape that the network's code is calling; None if the place in the code is not known."""
    found = _place()
    if found is None:
        return None
    return Reshape(module, *found[:2], tuple(channels), rank, same=tuple(same), roots=_roots(*found))


def name_here(module: str, dim: int, rank: int, source: int) -> Reshape | None:
    """Return the reshape that the network's code is calling, if it names the channels of what a layer has returned.

    `self.conv(x).reshape(B, C, -1)` has the number of the channels of `x` in the place of that of its own; -1 cannot
    stand there. `source` is the axis of the reshaped tensor that the channels have.
    """
    found = _place()
    function = None if found is None else _functions(found[0].co_filename).get(found[0].co_firstlineno)
    for call in _reshapes(function) if function is not None else ():
        if found is not None and (call.end_lineno, call.end_col_offset) == found[1] and len(call.args) == rank:
            size, rest = call.args[dim], [place for place, size in enumerate(call.args) if _is_rest(size)]
            named = isinstance(size, ast.Name) and len(rest) == 1 and rest[0] != dim
            if named and isinstance(size, ast.Name) and _is_new(function, call, size.id):
                return Reshape(module, *found[:2], (dim,), rank, source)
    return None


def _is_new(function: ast.FunctionDef | None, call: ast.Call, size: str) -> bool:
    """Return True if what a call reshapes was computed after the function took `size` from a shape."""
    assert function is not None and isinstance(call.func, ast.Attribute)
    tensor = call.func.value
    if isinstance(tensor, ast.Call):
        return True
    taken = made = 0
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and node.lineno < call.lineno:
            names = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            if size in names and "shape" in ast.unparse(node.value):
                taken = max(taken, node.lineno)
            if isinstance(tensor, ast.Name) and tensor.id in names:
                made = max(made, node.lineno)
    return 0 < taken < made


def attribute_here(dim: int, rank: int) -> str | None:
    """Return `name` if the network's code is calling a reshape to `rank` axes with `self.name` as the size of `dim`.

    The sizes can be in a tuple that the function made before: `shape = (*x.shape[:-1], -1, self.head_dim)`.
    """
    found = _place()
    function = None if found is None else _functions(found[0].co_filename).get(found[0].co_firstlineno)
    if found is None or function is None:
        return None
    for call in _reshapes(function):
        if (call.end_lineno, call.end_col_offset) == found[1]:
            sizes = {ast.unparse(size) for size in _sizes_at(function, call, dim, rank)}
            name = sizes.pop().removeprefix("self.") if len(sizes) == 1 else ""
            return name if name.isidentifier() else None
    return None


def _sizes_at(function: ast.FunctionDef, call: ast.Call, dim: int, rank: int) -> Iterator[ast.expr]:
    """Yield the expressions that a function gives to a reshape to `rank` axes for the size of `dim`."""
    if len(call.args) == 1 and rank > 1 and isinstance(call.args[0], ast.Name):
        made = [
            node.value.elts
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Tuple)
            and any(isinstance(target, ast.Name) and target.id == call.args[0].id for target in node.targets)
        ]
    else:
        made = [call.args]
    for sizes in made:
        starred = [place for place, size in enumerate(sizes) if isinstance(size, ast.Starred)]
        if len(starred) == 1 and dim - rank >= starred[0] + 1 - len(sizes):
            yield sizes[dim - rank]
        elif not starred and len(sizes) == rank:
            yield sizes[dim]


def _place() -> tuple[CodeType, tuple[int, int], Mapping[str, object]] | None:
    """Return the network's code that is running, the last line and column of what it is calling, and its variables."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is None:
        return None
    _, line, _, column = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    return None if line is None or column is None else (frame.f_code, (line, column), frame.f_locals)


def code_edits(model: nn.Module, reshapes: Iterable[Reshape]) -> tuple[CodeEdit, ...]:
    """Return the changes of the code, each once, for all modules of the classes whose reshapes a trace has seen."""
    seen_reshapes = list(reshapes)
    seen: dict[type[nn.Module], dict[str, tuple[CodeType, dict[tuple[int, int], Reshape]]]] = {}
    for reshape in seen_reshapes:
        kind = type(model.get_submodule(reshape.module))
        name = _function_name(kind, reshape.code)
        if name is not None:
            seen.setdefault(kind, {}).setdefault(name, (reshape.code, {}))[1][reshape.end] = reshape
    found: dict[CodeEdit, None] = {}
    roots = {(r.module, r.code): r.roots for r in seen_reshapes}
    for module_name, module in model.named_modules() if seen else ():
        for name, (code, ends) in seen.get(type(module), {}).items():
            for call, argument, source in _arguments(code, ends):
                found[CodeEdit(module_name, name, call, argument, source)] = None
            for text, value in roots.get((module_name, code), ()):
                found[CodeEdit(module_name, name, text, value=value)] = None
    return tuple(found)


def _arguments(code: CodeType, ends: dict[tuple[int, int], Reshape]) -> Iterator[tuple[str, int, int]]:
    """Yield the reshapes of a function, the argument of each that PyTorch can compute, and its axis of the tensor.

    The axis is -1 where -1 stands for the size.

    It is the last size along which the channels were seen to change, unless an attribute of the module gives it. Where
    no channels were seen, it is the only size that is made of the number of channels.
    """
    function = _functions(code.co_filename).get(code.co_firstlineno)
    if function is None:
        return
    numbers = _numbers_of_channels(function)
    for call in _reshapes(function):
        reshape = ends.get((call.end_lineno or 0, call.end_col_offset or 0))
        if any(map(_is_rest, call.args)):
            if reshape is not None and reshape.source >= 0:
                yield ast.unparse(call), reshape.channels[0], reshape.source
            elif reshape is not None:
                yield from _in_place_of_rest(call, reshape)
            continue
        if reshape is None:
            sizes = [place for place, size in enumerate(call.args) if _names(size) & numbers]
            sizes = sizes if len(sizes) == 1 else []
        else:
            sizes = [dim for dim in reshape.channels if len(call.args) == reshape.rank]
            # A number that is written there, as the 3 of queries, keys and values, suits a cut unless it is last.
            given = (ast.Attribute, ast.Constant)
            last = sizes[-1:]
            sizes = [dim for dim in sizes if not isinstance(call.args[dim], given[:1] if dim in last else given)]
        if sizes:
            yield ast.unparse(call), sizes[-1], -1


def _in_place_of_rest(call: ast.Call, reshape: Reshape) -> Iterator[tuple[str, int, int]]:
    """Yield two changes of a reshape that has a -1 already, as `kv.reshape(batch, -1, 2, heads, channels // heads)`.

    The last size becomes -1, and that which was -1 is taken from the reshaped tensor, whose axis it is.
    """
    rest = [place for place, size in enumerate(call.args) if ast.unparse(size) == "-1"]
    if len(call.args) != reshape.rank or len(rest) != 1 or any(isinstance(size, ast.Starred) for size in call.args):
        return
    (place,), last, axes = rest, reshape.channels[-1], dict(reshape.same)
    if last != place and place in axes and isinstance(call.args[last], ast.BinOp):
        yield ast.unparse(call), last, -1
        yield ast.unparse(call), place, axes[place]


def _numbers_of_channels(function: ast.FunctionDef) -> set[str]:
    """Return the names that a function gives to the last of three sizes of a tensor: batch, tokens, channels."""
    return {names[2] for names in _unpacked(function) if len(names) == 3}


def _unpacked(function: ast.FunctionDef) -> Iterator[list[str]]:
    """Yield the names that a function gives to the sizes of a tensor; a size without one has an empty name."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and "shape" in ast.unparse(node.value):
            for target in node.targets:
                if isinstance(target, ast.Tuple):
                    yield [name.id if isinstance(name, ast.Name) else "" for name in target.elts]


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def edit_code(model: nn.Module, edits: Iterable[CodeEdit]) -> None:
    """Give modules of a cut network the class whose code has the edits.

    Raises:
        RecipeError: if a module's code has no such call.
    """
    by_module: dict[str, list[CodeEdit]] = {}
    for edit in edits:
        by_module.setdefault(edit.module, []).append(replace(edit, module=""))
    for name, own in by_module.items():
        module = model.get_submodule(name)
        kind: Any = type(module)
        module.__class__ = _edited_class(kind, tuple(own))


@cache
def _edited_class(kind: type[nn.Module], edits: tuple[CodeEdit, ...]) -> type[nn.Module]:
    """Return a subclass of the module's class with the edits; the same one for the same edits."""
    methods: dict[str, object] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    for name in dict.fromkeys(edit.function for edit in edits):
        own = [edit for edit in edits if edit.function == name]
        method = getattr(kind, name, None)
        if isinstance(method, FunctionType):
            methods[name] = _edited_function(method, own)
            continue
        # A function beside the class: the method that calls it gets a copy of its globals.
        caller = methods.get("forward", kind.forward)
        function = getattr(caller, "__globals__", {}).get(name)
        if not isinstance(caller, FunctionType) or not isinstance(function, FunctionType):
            raise _no_call(own[0])
        names = {**caller.__globals__, name: _edited_function(function, own)}
        methods["forward"] = _function(caller.__code__, caller, names)
    return type(kind.__name__, (kind,), methods)


def _edited_function(function: FunctionType, edits: Sequence[CodeEdit]) -> FunctionType:
    try:
        source = textwrap.dedent(inspect.getsource(function))
        (tree,) = ast.parse(source).body
    except (OSError, TypeError, ValueError, SyntaxError):
        raise _no_call(edits[0]) from None
    assert isinstance(tree, ast.FunctionDef)
    tree.decorator_list = []
    for edit in (edit for edit in edits if edit.argument < 0):
        before = ast.dump(tree)
        tree = _Replaced(edit).visit(tree)
        if ast.dump(tree) == before:
            raise _no_call(edit)
    texts = [(node, ast.unparse(node)) for node in _reshapes(tree)]
    for edit in (edit for edit in edits if edit.argument >= 0):
        calls = [node for node, text in texts if text == edit.call and edit.argument < len(node.args)]
        if not calls:
            raise _no_call(edit)
        for call in calls:
            size = ast.Constant(-1) if edit.value < 0 else _size_of_source(call, int(edit.value))
            call.args[edit.argument] = ast.copy_location(size, call.args[edit.argument])
    # Inside a function that has the names of the closure, so that the new code has the same free variables.
    free = function.__code__.co_freevars
    outer = ast.FunctionDef(
        "outer", ast.arguments([], [ast.arg(name) for name in free], None, [], [], None, []), [tree], [], lineno=1
    )
    whole = ast.fix_missing_locations(ast.Module([outer], []))
    ast.increment_lineno(whole, function.__code__.co_firstlineno - 1)
    compiled = compile(whole, function.__code__.co_filename, "exec", _flags(function), dont_inherit=True)
    return _function(_inner(_inner(compiled, "outer"), function.__code__.co_name), function, function.__globals__)


def _size_of_source(call: ast.Call, axis: int) -> ast.expr:
    """Return `(y := ...).shape[axis]` for `(...).reshape(...)`, whose tensor gets the name y."""
    assert isinstance(call.func, ast.Attribute)
    name = "_reshaped"
    call.func.value = ast.NamedExpr(ast.Name(name, ast.Store()), call.func.value)
    shape = ast.Attribute(ast.Name(name, ast.Load()), "shape", ast.Load())
    return ast.Subscript(shape, ast.Constant(axis), ast.Load())


class _Replaced(ast.NodeTransformer):
    """Put a number in the place of an expression."""

    def __init__(self, edit: CodeEdit) -> None:
        self._edit = edit

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if ast.unparse(node) == self._edit.call:
            return ast.copy_location(ast.Constant(self._edit.value), node)
        return self.generic_visit(node)


def _roots(code: CodeType, _: tuple[int, int], variables: Mapping[str, object]) -> tuple[tuple[str, float], ...]:
    """Return the powers with a negative or broken exponent of whole numbers that a function holds, and their values."""
    found = []
    for node, text, names in _powers(code.co_filename, code.co_firstlineno):
        numbers = {name: variables.get(name) for name in names}
        if numbers and all(type(number) is int for number in numbers.values()):
            value = _value(node, numbers)
            if value is not None:
                found.append((text, value))
    return tuple(found)


@cache
def _powers(file: str, line: int) -> tuple[tuple[ast.BinOp, str, frozenset[str]], ...]:
    """Return the powers in a function that may be of numbers of channels, each with its text and its names."""
    function = _functions(file).get(line)
    if function is None:
        return ()
    of_images = {name for names in _unpacked(function) for name in names[:-1]}  # such as the number of tokens
    powers = [node for node in ast.walk(function) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)]
    named = [(node, ast.unparse(node), frozenset(_names(node))) for node in powers]
    return tuple((node, text, names) for node, text, names in named if not names & of_images)


def _value(node: ast.expr, numbers: Mapping[str, Any]) -> float | None:
    """Return the value of an expression of numbers, names and arithmetic; None for anything else. Runs no code."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id=name):
            return float(numbers[name])
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _value(operand, numbers)
            return None if inner is None else -inner
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            one, other = _value(left, numbers), _value(right, numbers)
            if one is not None and other is not None:
                # Division by 0, overflow, or the root of a negative number, which is complex.
                with contextlib.suppress(ArithmeticError, TypeError):
                    return float(_OPERATORS[type(op)](one, other))
    return None


def _function(code: CodeType, like: FunctionType, names: dict[str, object]) -> FunctionType:
    """Return a function with this code and these globals, and all else of `like`."""
    cells = dict(zip(like.__code__.co_freevars, like.__closure__ or (), strict=True))
    new = FunctionType(code, names, like.__name__, like.__defaults__, tuple(cells[name] for name in code.co_freevars))
    new.__kwdefaults__, new.__qualname__, new.__doc__ = like.__kwdefaults__, like.__qualname__, like.__doc__
    new.__module__ = like.__module__
    return new


def _flags(function: FunctionType) -> int:
    """The `from __future__ import annotations` of the function's file."""
    import __future__

    return function.__code__.co_flags & __future__.annotations.compiler_flag


def _inner(code: CodeType, name: str) -> CodeType:
    return next(part for part in code.co_consts if isinstance(part, CodeType) and part.co_name == name)


def _function_name(kind: type[nn.Module], code: CodeType) -> str | None:
    """Return the name of the method, or of the function beside `forward`, that has this code; None if there is none."""
    for owner in kind.__mro__:
        for name, value in vars(owner).items():
            if isinstance(value, FunctionType) and value.__code__ is code and getattr(kind, name) is value:
                return name
    beside = getattr(kind.forward, "__globals__", {}).get(code.co_name)
    return code.co_name if isinstance(beside, FunctionType) and beside.__code__ is code else None


@cache
def _functions(file: str) -> dict[int, ast.FunctionDef]:
    """Return the functions of a file by their first line, which is that of the first decorator."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {min([node.lineno, *(d.lineno for d in node.decorator_list)]): node for node in functions}


def _reshapes(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _RESHAPES:
            yield node


def _is_rest(argument: ast.expr) -> bool:
    """True for -1, of which a reshape can have one, and for a starred argument, whose number of sizes is not known."""
    return isinstance(argument, ast.Starred) or ast.unparse(argument) == "-1"


def _no_call(edit: CodeEdit) -> RecipeError:
    return RecipeError(
        f"The recipe changes {edit.call!r} in {edit.function!r}, which the code of this network does not have.",
        hint="Use the version of the code that the network was pruned with.",
    )
