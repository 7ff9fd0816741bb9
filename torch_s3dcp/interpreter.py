"""A pickle, carried out step by step, in which nothing is called but what was allowed. Pure.

Unlike ``pickle`` it looks nothing up by itself and sets no attribute of a class or function;
unlike ``torch.load(weights_only=True)`` each call goes through a function that looks at the
arguments first, and what is allowed holds for one load, not for the process.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, EnumMeta
from typing import Any

from .limits import Allowance, KeyCheck, RefusedError

_MARK = object()
# What the standard library calls a method that makes instances from pickles.
_UNPICKLES = "_unpickle"
_DICTS = (dict, OrderedDict, defaultdict)


@dataclass(frozen=True, eq=False)
class Allowed:
    """Something that a pickle may name.

    Args:
        value: What the name stands for.
        call: Called instead of it, with a pickle's arguments; None: it may not be called.
        build: Gives an instance of it its state; None: instances get none.
        trusted: Whether it may do as it likes, such as a class that the user allowed.
        counted: Whether its calls count what they are given as copied.
    """

    value: Any
    call: Callable[..., Any] | None = None
    build: Callable[[Any, Any], None] | None = None
    trusted: bool = False
    counted: bool = True


def set_attributes(target: Any, state: Any) -> None:
    """What a pickle does with the state of an object that has no ``__setstate__``."""
    slots: Any = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    for attributes in (state, slots):
        for name, value in (attributes or {}).items():
            # Such names decide what Python does with the object.
            if type(name) is not str or (name.startswith("__") and name.endswith("__")):
                raise RefusedError(f"attribute {name!r} may not be set")
            if attributes is slots:
                setattr(target, name, value)
            else:
                target.__dict__[name] = value


class Interpreter:
    """One run through one pickle.

    Args:
        find: What a name stands for. It raises :class:`RefusedError` for what is not allowed.
        allowance: What calls may copy.
        persistent: Gives what a persistent id stands for.
    """

    def __init__(
        self,
        find: Callable[[str], Allowed],
        allowance: Allowance,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._find = find
        self._allowance = allowance
        self._persistent = persistent
        self._allowed: dict[int, Allowed] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        # Ids of what was taken from there: it stays there, so that they stay its own.
        self._again = set[int]()
        self._key = KeyCheck()

    def load(self, data: bytes) -> Any:
        """The value. Any exception may come of a damaged pickle.

        Raises:
            RefusedError: It wants something that is not allowed.
        """
        for opcode, argument, _ in pickletools.genops(data):
            step = _STEPS.get(opcode.name)
            if step is not None:
                step(self, argument)
            elif opcode.name in _VALUES:
                self._stack.append(argument)
            elif opcode.name == "STOP":
                return self._pop()
            elif opcode.name not in ("PROTO", "FRAME"):
                raise RefusedError(f"opcode {opcode.name} is not allowed")
        raise ValueError("the pickle has no end")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def _to_mark(self) -> list[Any]:
        position = len(self._stack) - 1
        while self._stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise ValueError("there is no mark")
        items = self._stack[position + 1 :]
        del self._stack[position:]
        return items

    # What names stand for --------------------------------------------------------------

    def _name(self, name: str) -> None:
        allowed = self._find(name)
        self._allowed[id(allowed.value)] = allowed
        self._stack.append(allowed.value)

    def _global(self, argument: str) -> None:
        self._name(".".join(argument.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name that is no text")
        self._name(f"{module}.{name}")

    def _callable(self, value: Any, arguments: Any) -> Callable[..., Any]:
        allowed = self._allowed.get(id(value))
        if allowed is None or allowed.value is not value or allowed.call is None:
            raise RefusedError(f"{_shown(value)} may not be called")
        if allowed.counted:
            self._allowance.weigh(arguments, self._again)
        return allowed.call

    def _reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        if type(arguments) is not tuple:
            raise ValueError("arguments that are no tuple")
        call = self._callable(function, arguments)
        if call is getattr and not self._allowed[id(function)].trusted:
            call = self._attribute
        self._stack.append(call(*arguments))

    def _attribute(self, owner: Any = None, name: Any = None, *_: Any) -> Any:
        """What Python pickles by ``getattr``, of classes that may be made.

        Time zones come by a method of their class, members of enumerations did in Python 3.11.0
        to 3.11.2. Other methods of a class do what nobody thinks of who allows it, such as to
        load a file.
        """
        allowed = self._allowed.get(id(owner))
        trusted = allowed is not None and allowed.value is owner and allowed.trusted
        if trusted and isinstance(owner, type) and type(name) is str:
            if isinstance(owner, EnumMeta) and name in owner.__members__:
                return owner.__members__[name]
            if name == _UNPICKLES:
                method = getattr(owner, name)
                self._allowed[id(method)] = Allowed(method, method, trusted=True)
                return method
        raise RefusedError(f"it asks for {name!r} of {_shown(owner)}", "builtins.getattr")

    def _new(self, _: Any) -> None:
        self._make(self._pop(), {})

    def _new_ex(self, _: Any) -> None:
        keywords = self._pop()
        if type(keywords) is not dict:
            raise ValueError("keywords that are no dict")
        self._make(self._pop(), keywords)

    def _make(self, arguments: Any, keywords: Mapping[str, Any]) -> None:
        kind = self._pop()
        make = self._callable(kind, arguments)
        if self._allowed[id(kind)].trusted and isinstance(kind, type):
            self._stack.append(kind.__new__(kind, *arguments, **keywords))
        elif keywords or not isinstance(kind, type):
            raise RefusedError(f"{_shown(kind)} makes no instances of its own")
        else:
            self._stack.append(make(*arguments))

    def _build(self, _: Any) -> None:
        state = self._pop()
        target = self._stack[-1]
        if isinstance(target, Enum):
            # There is one of it in the process.
            raise RefusedError("a member of an enumeration may not be given a state")
        # Some classes give instances of their own subclasses, such as numpy.dtype.
        known = (self._allowed.get(id(kind)) for kind in type(target).__mro__)
        allowed = next((one for one in known if one is not None), None)
        if allowed is None:
            # Made by a function that is allowed; raises what its class is called if that is not.
            kind = type(target)
            found = self._find(f"{kind.__module__}.{kind.__qualname__}")
            allowed = found if found.value is kind else None
        if allowed is None or allowed.build is None:
            raise RefusedError(f"a {type(target).__name__} may not be given a state")
        if allowed.counted:
            self._allowance.weigh((state,), self._again)
        allowed.build(target, state)

    def _persist(self, _: Any) -> None:
        if self._persistent is None:
            raise RefusedError("a persistent id")
        self._stack.append(self._persistent(self._pop()))

    # Containers ------------------------------------------------------------------------

    def _is_trusted(self, target: Any) -> bool:
        allowed = self._allowed.get(id(type(target)))
        return allowed is not None and allowed.trusted

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (list, deque) and not self._is_trusted(target):
            raise RefusedError(f"nothing may be appended to a {type(target).__name__}")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in _DICTS and not self._is_trusted(target):
            raise RefusedError(f"no item may be set of a {type(target).__name__}")
        for position in range(0, len(items), 2):
            target[self._key(items[position])] = items[position + 1]

    def _add_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not set:
            raise RefusedError(f"nothing may be added to a {type(target).__name__}")
        target.update(map(self._key, items))

    def _tuple(self, count: int) -> None:
        items = tuple(self._pop() for _ in range(count))
        self._stack.append(items[::-1])

    def _pair(self) -> list[Any]:
        value, key = self._pop(), self._pop()
        return [key, value]

    def _dict(self, items: list[Any]) -> None:
        self._stack.append(dict(zip(map(self._key, items[::2]), items[1::2], strict=True)))

    def _remember(self, number: int | None) -> None:
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def _recall(self, number: int) -> None:
        value = self._memo[number]
        self._again.add(id(value))
        self._stack.append(value)


def _shown(value: Any) -> str:
    name = getattr(value, "__qualname__", None) if callable(value) else None
    return str(name) if isinstance(name, str) else f"a {type(value).__name__}"


_VALUES = {
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_Step = Callable[[Interpreter, Any], Any]
_STEPS: dict[str, _Step] = {
    "GLOBAL": Interpreter._global,
    "STACK_GLOBAL": Interpreter._stack_global,
    "REDUCE": Interpreter._reduce,
    "NEWOBJ": Interpreter._new,
    "NEWOBJ_EX": Interpreter._new_ex,
    "BUILD": Interpreter._build,
    "BINPERSID": Interpreter._persist,
    "MARK": lambda run, _: run._stack.append(_MARK),
    "NONE": lambda run, _: run._stack.append(None),
    "NEWTRUE": lambda run, _: run._stack.append(True),
    "NEWFALSE": lambda run, _: run._stack.append(False),
    "EMPTY_LIST": lambda run, _: run._stack.append([]),
    "EMPTY_DICT": lambda run, _: run._stack.append({}),
    "EMPTY_SET": lambda run, _: run._stack.append(set()),
    "EMPTY_TUPLE": lambda run, _: run._stack.append(()),
    "TUPLE": lambda run, _: run._stack.append(tuple(run._to_mark())),
    "TUPLE1": lambda run, _: run._tuple(1),
    "TUPLE2": lambda run, _: run._tuple(2),
    "TUPLE3": lambda run, _: run._tuple(3),
    "LIST": lambda run, _: run._stack.append(run._to_mark()),
    "DICT": lambda run, _: run._dict(run._to_mark()),
    "FROZENSET": lambda run, _: run._stack.append(frozenset(map(run._key, run._to_mark()))),
    "APPEND": lambda run, _: run._extend([run._pop()]),
    "APPENDS": lambda run, _: run._extend(run._to_mark()),
    "SETITEM": lambda run, _: run._set_items(run._pair()),
    "SETITEMS": lambda run, _: run._set_items(run._to_mark()),
    "ADDITEMS": lambda run, _: run._add_items(run._to_mark()),
    "POP": lambda run, _: run._stack.pop(),
    "POP_MARK": lambda run, _: run._to_mark(),
    "DUP": lambda run, _: run._stack.append(run._stack[-1]),
    "BINGET": Interpreter._recall,
    "LONG_BINGET": Interpreter._recall,
    "BINPUT": Interpreter._remember,
    "LONG_BINPUT": Interpreter._remember,
    "MEMOIZE": Interpreter._remember,
}
