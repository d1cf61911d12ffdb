"""Tiles that are not computed yet: what would be done to them is written down, and done when it is asked for.

A ``LazyTensor`` has a shape, a dtype and a device, and no values. Every operation on one becomes a ``Node`` of a
program: the operation, below autograd, and what it reads. So the engine's rules, and backward passes, run on lazy tiles
as they are, once; ``rsseglab.spatial.stream`` then decides in which order the nodes are computed and how long their
results are kept.

Only what owns memory is a node. A view is a note on a reference, ``Ref``, and is taken anew by whoever reads it; so a
node's result is freed, or moved to disk, as one piece. So is a band with its neighbours' rows around it, ``Window``,
where the band has room for them (``rsseglab.spatial.halos``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.halos import PLACED, Room, beside, in_rows

Function = TypeVar("Function", bound=Callable[..., Any])
aten = torch.ops.aten
SAME_VALUES = (aten.detach.default, aten.alias.default, aten.lift_fresh.default)
FACTORIES = [  # they look at no value
    getattr(aten, name).default
    for what in ("empty", "zeros", "ones", "full")
    for name in (f"new_{what}", f"{what}_like")
]
#: The same numbers, without more memory.
IN_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {aten.relu.default: aten.relu_.default}
OUT_OF_PLACE = {aten.bernoulli_.float: aten.bernoulli.p}  # where the name does not tell
WRITES_TO_A_PART = (
    "overwrites a part of a tensor while a scene is streamed; build the new tensor out of place (torch.where, "
    "torch.cat), or label the scene whole."
)
NESTED = (tuple, list, dict, torch.Size)
ASKS_FOR_VALUES = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)


class Node:
    """One operation and what it reads; its result, once it is computed.

    Attributes:
        function: what is called.
        args: arguments, with a `Ref` in the place of each lazy tensor.
        kwargs: likewise.
        reads: the nodes of these references, each once.
        constants: plain tensors among the arguments.
        nbytes: of the result.
        layer: the module that asked for it, by name.
        tile: of the scene that it is about, as far as that can be told: that of the largest tensor that it reads.
        number: nodes are numbered as they are written down.
        barrier: whether all of the scene goes into it.
        room: rows of memory around the (first) result, for windows over it.
        window: if it puts rows of neighbours around a band that has room for them: what, and which is the band.
    """

    __slots__ = (
        "_open", "args", "barrier", "constants", "function", "kwargs", "layer", "nbytes", "number", "reads", "room",
        "tile", "window",
    )  # fmt: skip

    def __init__(
        self,
        function: Callable[..., Any],
        args: Any,
        kwargs: Any,
        results: Sequence[Tensor],
        layer: str,
        tile: int | None,
        number: int,
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.layer, self.tile, self.number = layer, tile, number
        leaves = [_leaves(arg) if type(arg) in NESTED else (arg,) for arg in args]
        # Most arguments are plain numbers; a run looks at those alone that are something else each time.
        self._open = tuple([i for i, its in enumerate(leaves) if any(type(leaf) in OPEN for leaf in its)])
        every = [leaf for its in (*leaves, _leaves(kwargs)) for leaf in its]
        self.reads = tuple(dict.fromkeys([node for leaf in every if type(leaf) in OPEN for node in leaf.nodes]))
        self.constants = tuple([leaf for leaf in every if isinstance(leaf, Tensor)])
        self.nbytes = sum([x.nbytes for x in results])
        self.barrier = False
        self.room: Room | None = None
        self.window: tuple[tuple[Ref, ...], int] | None = None

    def make_room(self, room: Room, row_bytes: int) -> None:
        """Have the result, and one whose place it may take, lie in memory with rows around it."""
        node: Node | None = self
        while node is not None and node.function in PLACED:
            rows = 0 if node.room is None else node.room.before + node.room.after
            node.room = room | node.room
            node.nbytes += (node.room.before + node.room.after - rows) * row_bytes
            node = node.operand

    @property
    def operand(self) -> Node | None:
        """The node whose result can become this one's, if no other reads it: it is torch's own, of all that is seen."""
        if self.function not in IN_PLACE:
            return None
        ref = self.args[0]
        own = type(ref) is Ref and not ref.views and isinstance(ref.node.function, torch._ops.OpOverload)
        return ref.node if own else None

    def compute(self, values: Callable[[Node], Any], inputs: Mapping[str, Any], overwrites: bool) -> Any:
        """The result, from those of the nodes that it reads, and from what this run is given.

        Where it ``overwrites``, it takes the place of `operand`'s.
        """

        def value(leaf: Any) -> Any:
            if type(leaf) is Ref or type(leaf) is Window:
                return leaf.of(values)
            return inputs[leaf.name] if type(leaf) is Input else leaf

        args = list(self.args)
        for i in self._open:
            arg = args[i]
            args[i] = arg.of(values) if type(arg) is Ref else _changed(value, arg)
        kwargs = _changed(value, self.kwargs) if self.kwargs else {}
        if overwrites:
            return IN_PLACE[self.function](*args, **kwargs)
        if self.room is not None and in_rows(first := _leaves(args[0])[0]):
            return PLACED[self.function](*args, **kwargs, out=self.room.band(first.device))
        return self.function(*args, **kwargs)


class Input:
    """In the place of an argument: what a program is given when it is run, by name."""

    __slots__ = ("name",)
    nodes = ()

    def __init__(self, name: str) -> None:
        self.name = name


class View(NamedTuple):
    """An operation that torch answers with a view, and which of its results is meant."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    number: int | None


class Ref:
    """A node's result, or one of several, seen through views."""

    __slots__ = ("index", "node", "views")

    def __init__(self, node: Node, index: int | None = None, views: tuple[View, ...] = ()) -> None:
        self.node, self.index, self.views = node, index, views

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The node, as one of those that are read."""
        return (self.node,)

    def of(self, values: Callable[[Node], Any]) -> Any:
        """The tensor that is meant, from the results of nodes."""
        result = values(self.node)
        return _seen(result if self.index is None else result[self.index], self.views)


class Window:
    """A band with its neighbours' rows around it, seen through views: put together anew for each who reads it."""

    __slots__ = ("own", "pieces", "views")

    def __init__(self, pieces: tuple[Ref, ...], own: int, views: tuple[View, ...]) -> None:
        self.pieces, self.own, self.views = pieces, own, views

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Those that are read."""
        return tuple([piece.node for piece in self.pieces])

    def of(self, values: Callable[[Node], Any]) -> Any:
        """The tensor that is meant, from the results of nodes."""
        return _seen(beside([piece.of(values) for piece in self.pieces], self.own), self.views)


OPEN = (Ref, Window, Input)


def _seen(x: Any, views: tuple[View, ...]) -> Any:
    """A tensor through views."""
    for function, args, kwargs, index in views:
        x = function(x, *args, **kwargs)
        x = x if index is None else x[index]
    return x


def _written(function: Any, views: tuple[View, ...], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A copy of a tensor, with an operation in place done to a view of it."""
    x = x.clone()
    part = _seen(x, views)
    if part.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():  # a reshape that had to copy
        raise SpatialError(f"{function} {WRITES_TO_A_PART}")
    function(part, *args, **kwargs)
    return x


def _leaves(args: Any) -> list[Any]:
    """What nested arguments hold."""
    if not isinstance(args, NESTED):
        return [args]
    leaves: list[Any] = []
    pending = [args]
    while pending:
        value = pending.pop()
        if type(value) is dict:
            pending += reversed(value.values())
        elif isinstance(value, NESTED):
            pending += list(value)[::-1]
        else:
            leaves.append(value)
    return leaves


def _changed(change: Callable[[Any], Any], args: Any) -> Any:
    """Nested arguments with each leaf changed."""
    if not isinstance(args, NESTED):
        return change(args)
    if type(args) is dict:
        return {key: _changed(change, value) for key, value in args.items()}
    return type(args)([_changed(change, value) for value in args])


class Root:
    """The memory that a lazy tensor and its views share; an operation in place gives it another node.

    Attributes:
        node: whose result it is.
        shape: of that result.
        index: which of several results it is.
        again: makes another such node for each reader: what is read from disk whenever it is needed, and not kept.
    """

    __slots__ = ("again", "index", "node", "shape")

    def __init__(
        self, node: Node, shape: torch.Size, index: int | None = None, again: Callable[[], Node] | None = None
    ) -> None:
        self.node, self.shape, self.index, self.again = node, shape, index, again

    def read(self) -> Node:
        """The node, for one that reads it."""
        return self.node if self.again is None else self.again()

    def overwrite(self, node: Node) -> None:
        """From now on it is another node's result."""
        self.node, self.index, self.again = node, None, None


class Recorder:
    """Where lazy tensors write down what is done to them.

    Attributes:
        layer: name of the module that runs; nodes are labelled with it.
        nodes: how many there are.
        sums: the nodes that `resummed` has made.
    """

    def __init__(self) -> None:
        self.layer = ""
        self.nodes = 0
        self.sums: list[Node] = []
        self._metas: dict[Tensor, Tensor] = {}  # of plain tensors, such as masks
        self._versions: dict[Tensor, int] = {}  # of these, when they were first seen
        self._known: dict[Any, Any] = {}

    def source(
        self,
        function: Callable[..., Tensor],
        meta: Tensor,
        device: torch.device,
        tile: int | None = None,
        again: bool = False,
        args: tuple[Input, ...] = (),
    ) -> LazyTensor:
        """A tensor that a function will give: once, or again to each operation that reads it."""
        meta = self._same(meta)

        def node() -> Node:
            return self._node(function, args, {}, [meta], tile)

        return LazyTensor(self, meta, Root(node(), meta.shape, again=node if again else None), (), device)

    def record(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Write an operation down; its lazy result."""
        if function in SAME_VALUES:
            return LazyTensor(self, args[0].meta, args[0].root, args[0].views, args[0].device)
        if function in ASKS_FOR_VALUES:
            raise _no_values(function)
        if function is aten.as_strided.default:
            raise SpatialError(
                f"{function} looks at how a tensor lies in memory, which may be otherwise than planned; label the "
                "scene whole, or in crops."
            )
        if function._schema.is_mutable:
            self._check_target(function, args)
            return self._in_place(function, args, kwargs)
        meta = self._shapes(function, args, kwargs)
        if function.is_view or function is aten._unsafe_view.default:
            return self._view(function, args, kwargs, meta)
        return self._results(function, args, kwargs, meta)

    def write(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Write a function down that is none of torch's operations."""
        return self._results(function, args, kwargs, self._shapes(function, args, kwargs))

    def draw(self, function: Any, args: Any, kwargs: Any) -> LazyTensor:
        """Write down random numbers that nothing goes into."""
        meta = function(*args, **{**kwargs, "device": torch.device("meta")})
        node = self._node(function, args, kwargs, [meta], None)
        return LazyTensor(self, meta, Root(node, meta.shape), (), kwargs.get("device") or torch.get_default_device())

    def resummed(self, x: LazyTensor) -> Ref:
        """A sum of many terms, with the terms in the order of their tiles, from the last to the first.

        Autograd adds up a weight's gradient in whatever order the tiles' shares come; those that come early would wait.
        """
        terms, stack = [], [x.ref]
        while stack:
            ref = stack.pop()
            node = ref.node
            sum_of_two = node.function is aten.add.Tensor and all(type(arg) is Ref for arg in node.args)
            if sum_of_two and not node.kwargs and not ref.views and ref.index is None:
                stack += node.args
            else:
                terms.append(ref)
        terms.sort(key=lambda ref: -1 if ref.node.tile is None else ref.node.tile, reverse=True)
        total = terms[0]
        for term in terms[1:]:
            total = Ref(self._node(aten.add.Tensor, (total, term), {}, [x.meta], term.node.tile))
            self.sums.append(total.node)
        return total

    def check_constants(self) -> None:
        """Plain tensors are read when the program is run, so they have to be as they were when they were used.

        Raises:
            SpatialError: one has been overwritten since.
        """
        for x, version in self._versions.items():
            if _version(x) != version:
                raise SpatialError(
                    f"a tensor {list(x.shape)} that does not depend on the image is overwritten after it was used; "
                    "make a new one instead, or label the scene whole."
                )

    def _shapes(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What a function gives on ``meta`` tensors; most bands ask for what another has asked for before."""
        asked = (function, _signature(args), _signature(kwargs) if kwargs else None)
        if asked not in self._known:
            try:
                found = function(*_changed(self._on_meta, args), **_changed(self._on_meta, kwargs))
                self._known[asked] = _changed(lambda x: self._same(x) if isinstance(x, Tensor) else x, found)
            except NotImplementedError as error:
                raise SpatialError(
                    f"{function} can't be planned ({error}); label the scene whole, or in crops."
                ) from error
        return self._known[asked]

    def _same(self, meta: Tensor) -> Tensor:
        """One ``meta`` tensor for all that are alike, so that they are known by it."""
        return self._known.setdefault((meta.shape, meta.stride(), meta.dtype), meta)  # type: ignore[no-any-return]

    def _results(self, function: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        lazy = _lazy_in((args, kwargs))
        device, tile = kwargs.get("device") or lazy[0].device, _tile_of(lazy)
        if function in FACTORIES:  # a tensor of that shape, without its values, which may be long in coming
            x = args[0]
            args = (torch.empty((), dtype=x.dtype, device=x.device).expand(x.shape), *args[1:])
        results = [meta] if isinstance(meta, Tensor) else [m for m in meta if isinstance(m, Tensor)]
        node = self._node(function, *_referred(args, kwargs), results, tile)
        if function is aten.cat.default:
            node.window = _window(*args)
        if isinstance(meta, Tensor):
            return LazyTensor(self, meta, Root(node, meta.shape), (), device)
        return type(meta)(
            LazyTensor(self, m, Root(node, m.shape, i), (), device) if isinstance(m, Tensor) else m
            for i, m in enumerate(meta)
        )

    def _node(self, function: Any, args: Any, kwargs: Any, results: Sequence[Tensor], tile: int | None) -> Node:
        self.nodes += 1
        node = Node(function, args, kwargs, results, self.layer, tile, self.nodes)
        for x in node.constants:
            self._versions.setdefault(x, _version(x))
        return node

    def _view(self, function: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        x, rest = args[0], tuple(args[1:])
        # Strides of a kernel's result may be others than were planned; values are the same.
        function = torch.reshape if function in (aten.view.default, aten._unsafe_view.default) else function
        if isinstance(meta, Tensor):
            return LazyTensor(self, meta, x.root, (*x.views, View(function, rest, kwargs, None)), x.device)
        return type(meta)(
            LazyTensor(self, m, x.root, (*x.views, View(function, rest, kwargs, i)), x.device)
            for i, m in enumerate(meta)
        )

    def _check_target(self, function: Any, args: Any) -> None:
        """Refuse what writes to anything but a lazy tensor that is its first operand."""
        writes = [
            argument.alias_info is not None and argument.alias_info.is_write for argument in function._schema.arguments
        ]
        if not writes[0] or sum(writes) > 1:
            raise SpatialError(f"{function} writes to a tensor that is handed in (out=); take what it returns.")
        if torch.Tag.inplace_view in function.tags:
            raise SpatialError(f"{function} gives a tensor another shape in place; use the view that it is named for.")
        if not isinstance(args[0], LazyTensor):
            raise SpatialError(
                f"{function} writes what depends on the image into a tensor {list(args[0].shape)} that does not; "
                "build the new tensor out of place, or label the scene whole."
            )
        if args[0].copied:
            raise SpatialError(f"{function} {WRITES_TO_A_PART}")

    def _in_place(self, function: Any, args: Any, kwargs: Any) -> Any:
        """An operation that overwrites its first operand: one that does not, and whoever shares memory sees it."""
        target, root, tile = args[0], args[0].root, _tile_of(_lazy_in((args, kwargs)))
        name = function._schema.name.removeprefix("aten::")
        twin = OUT_OF_PLACE.get(function) or getattr(
            getattr(aten, name.rstrip("_"), None), function._overloadname, None
        )
        all_of_it = all(view.function is torch.reshape for view in target.views)
        if twin is None or not all_of_it or self._shapes(twin, args, kwargs).dtype != target.dtype:
            base, twin = Ref(root.read(), root.index), partial(_written, function, target.views)
            rest, kwargs = _referred(args[1:], kwargs)
            args = (base, *rest)
        else:
            args, kwargs = _referred(args, kwargs)
            if target.views:  # all of the memory, in another shape
                shape, into = root.shape, twin
                twin = lambda *args, **kwargs: into(*args, **kwargs).reshape(shape)  # noqa: E731
        root.overwrite(self._node(twin, args, kwargs, [target.meta], tile))
        return target

    def _on_meta(self, leaf: Any) -> Any:
        if isinstance(leaf, LazyTensor):
            return leaf.meta
        if isinstance(leaf, Tensor):
            if leaf not in self._metas:
                self._metas[leaf] = leaf.to("meta")
            return self._metas[leaf]
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf


class LazyTensor(Tensor):
    """A tensor whose values are not known yet; see the module.

    Attributes:
        recorder: where operations on it are written down.
        meta: a tensor of its shape and strides, without values.
        root: where its values will be.
        views: how it sees them.
        copied: whether it is a copy where torch has a view (``rsseglab.spatial.tensor.Copied``), not to be written to.
    """

    recorder: Recorder
    meta: Tensor
    root: Root
    views: tuple[View, ...]
    copied: bool

    @staticmethod
    def __new__(
        cls, recorder: Recorder, meta: Tensor, root: Root, views: tuple[View, ...], device: torch.device
    ) -> LazyTensor:
        """Wrap a shape."""
        self: LazyTensor = Tensor._make_wrapper_subclass(
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=device,
        )
        self.recorder, self.meta, self.root, self.views, self.copied = recorder, meta, root, views, False
        return self

    @property
    def ref(self) -> Ref:
        """What it stands for by now."""
        return Ref(self.root.read(), self.root.index, self.views)

    @property
    def operand(self) -> Ref | Window:
        """What is handed to an operation on it."""
        if self.root.node.window is None:
            return self.ref
        return Window(*self.root.node.window, self.views)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"LazyTensor(shape={list(self.shape)}, dtype={self.dtype}, device={self.device})"

    def tolist(self) -> Any:
        """There are no values."""
        raise _no_values("tolist")

    def numpy(self, *, force: bool = False) -> Any:
        """There are no values."""
        raise _no_values("numpy")

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Write the operation down."""
        kwargs = kwargs or {}
        return _first_lazy((args, kwargs)).recorder.record(func, args, kwargs)  # type: ignore[union-attr]


class Coins(TorchDispatchMode):
    """Random numbers that do not depend on the image, such as those of drop-path, are lazy too: drawn in each run."""

    def __init__(self, recorder: Recorder) -> None:
        TorchDispatchMode.__init__(self)
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Write a factory of random numbers down; do the rest."""
        kwargs = kwargs or {}
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random and any(argument.name == "device" for argument in func._schema.arguments):
            return self.recorder.draw(func, args, kwargs)
        return func(*args, **kwargs)


def opaque(function: Function) -> Function:
    """Let lazy tensors take a function as one operation, whatever it does inside: it looks at strides, or values.

    It has to give shapes for ``meta`` tensors, and tensors that are new. Autograd does not see it: it belongs inside an
    ``autograd.Function``, or takes nothing that is differentiated.
    """

    @wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        lazy = _first_lazy((args, kwargs))
        assert lazy is None or not (torch.is_grad_enabled() and lazy.requires_grad), "autograd would not see it"
        return function(*args, **kwargs) if lazy is None else lazy.recorder.write(function, args, kwargs)

    return either  # type: ignore[return-value]


def everywhere(x: Tensor) -> Tensor:
    """Say that all of the scene goes into a tensor."""
    if isinstance(x, LazyTensor):
        x.root.node.barrier, x.root.node.tile = True, None
    return x


def _lazy_in(args: Any) -> list[LazyTensor]:
    """Lazy tensors in nested arguments."""
    return [leaf for leaf in _leaves(args) if isinstance(leaf, LazyTensor)]


def _first_lazy(args: Any) -> LazyTensor | None:
    """The first of them, without looking at the rest."""
    if isinstance(args, LazyTensor):
        return args
    if type(args) is dict:
        args = tuple(args.values())
    if isinstance(args, NESTED):
        for value in args:
            if (found := _first_lazy(value)) is not None:
                return found
    return None


def _tile_of(lazy: Sequence[LazyTensor]) -> int | None:
    """The tile of the largest tensor that is of one; of several as large, the middle one (a row between two others)."""
    if len(lazy) == 1:
        return lazy[0].root.node.tile
    sizes = [(x.meta.numel(), x.root.node.tile) for x in lazy if x.root.node.tile is not None]
    most = max(sizes, default=(0, 0))[0]
    found = sorted({tile for size, tile in sizes if size == most})
    return found[(len(found) - 1) // 2] if found else None


def _no_values(function: Any) -> SpatialError:
    return SpatialError(
        f"{function} asks for values while a scene is streamed, and there are none yet: the network's work depends on "
        "what it sees; label the scene whole, or in crops."
    )


def _version(x: Tensor) -> int:
    """How often a tensor has been overwritten, where that is counted."""
    return 0 if x.is_inference() else x._version


def _signature(args: Any) -> Any:
    """All that the shapes of a function's results depend on."""
    if type(args) is LazyTensor:
        return args.meta
    if type(args) is dict:
        return tuple([(key, _signature(value)) for key, value in args.items()])
    if isinstance(args, NESTED):
        return tuple([_signature(value) for value in args])
    return (args.shape, args.stride(), args.dtype) if isinstance(args, Tensor) else (type(args), args)


def _referred(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Arguments with a reference in the place of each lazy tensor.

    A band has room for one window at a time: of several that one operation reads, the others are tensors of their own.
    """
    there: dict[Node, Any] = {}

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, LazyTensor):
            return leaf
        operand = leaf.operand
        if type(operand) is Window:
            pieces = operand.pieces
            if there.setdefault(pieces[operand.own].node, pieces) is not pieces:
                return leaf.ref
        return operand

    return _changed(change, args), _changed(change, kwargs) if kwargs else kwargs


def _window(tensors: Sequence[Any], dim: int = 0) -> tuple[tuple[Ref, ...], int] | None:
    """If tensors are joined to a band with rows of neighbours around it, and it can have room for them: it gets it."""
    whole = [i for i, x in enumerate(tensors) if isinstance(x, LazyTensor) and not x.views]
    if dim != 2 or len(whole) != 1 or not all(isinstance(x, LazyTensor) for x in tensors):
        return None
    own = whole[0]
    band = tensors[own]
    if band.root.node.function not in PLACED or band.root.index or band.dim() != 4 or len(band) != 1:
        return None
    if any(x.dtype != band.dtype for x in tensors):  # joined, they would be of a wider kind
        return None
    rows = [x.shape[2] for x in tensors]
    row_bytes = band.shape[1] * band.shape[3] * band.element_size()
    band.root.node.make_room(Room(band.shape, band.dtype, sum(rows[:own]), sum(rows[own + 1 :])), row_bytes)
    return tuple(x.ref for x in tensors), own
