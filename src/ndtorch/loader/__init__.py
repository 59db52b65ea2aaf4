"""Loader: arrays, memory maps and files as shuffled batches of tensors, on the device where they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from .._errors import UnsupportedTypeError
from .._keywords import names_what_is_meant
from .agreement import agreement_of
from .batches import Batches
from .checks import OF_DATALOADER, SUBJECT, exclude, seed_of, switch, whole_number
from .dealing import Batched, Dealing, Steps
from .epoch import Beginning, Epoch
from .file_columns import warn_of_scattered
from .ordering import OrderOptions, draws_for_itself, ordering_of
from .orders import Order
from .pace import wishes_of
from .placement import placement_of
from .ranks import Ranks, ranks_of
from .sources import SourceOptions, sources_of
from .state import Progress

_ANOTHER = "makes another loader"
_FIXED = {  # what is public and stays as it is, and what to call instead of an assignment
    "batch_size": f"ndtorch.Loader(data, batch_size=32) {_ANOTHER}",
    "drop_last": f"ndtorch.Loader(data, batch_size=32, drop_last=True) {_ANOTHER}",
    "rank": f"ndtorch.Loader(data, rank=1, world_size=2) {_ANOTHER}",
    "world_size": f"ndtorch.Loader(data, rank=1, world_size=2) {_ANOTHER}",
    "seed": f"ndtorch.Loader(data, shuffle=True, seed=1) {_ANOTHER}",
    "epoch": "loader.set_epoch(1) makes the next loop that epoch",
}


class Loader:
    """Shuffled batches of tensors from arrays, memory maps and files, at memory speed.

        loader = nd.Loader((images, labels), batch_size=256, shuffle=True, device="cuda")
        for epoch in range(10):
            for x, y in loader:
                ...

    Every loop over it is one epoch with an order of its own, which depends on the seed and the number of the epoch and
    on nothing else: make one loader for all epochs, for a new one begins with epoch 0 and its order. A loop begins with
    its first batch; one that is left early is an epoch too, and of two at once each is one. Batches have the structure
    of the data, each leaf with the rows of the batch. What a loader was made with stays: `set_epoch` and
    `load_state_dict` change where it stands, and no attribute below can be set.

    Memory:
        The data is read, never written and never copied as a whole; do not change it while a loop runs. Every batch is
        memory of its own: it is yours for as long as you keep it. A loop that is left, by ``break`` or an error, ends
        its threads and frees what they have made.
        Of a file the rows of a batch are read when it is made: through a map that is read-only where they are short and
        lie in the file as in memory, else into the batch. Chunks that have to be decoded are kept, those that were used
        last, in a quarter of the memory that is left and 1 GB at most; what is packed as one piece (a compressed
        ``.npz``) is decoded whole. Of datasets and arrays that h5py and zarr have open for writing nothing is kept from
        one loop to the next, so that a loop has what was written before it began; those of a file that is named by its
        path may be kept for as long as the loader lives. What a format keeps as a checksum is compared where a chunk is
        decoded, not by row.
        Shards of a data set are opened when their rows are wanted, and 4096 at most stay open. Small ones (1 MB on
        average) are then read whole and kept, where all of them are within 256 MB for all loaders together.
        A file that is cut short meanwhile is a `FormatError`, that of a shard which is kept after some batches; where
        rows are mapped and the cut falls into their gather, it ends the process.
        A tensor that torch moves meanwhile, as ``share_memory_`` does, alone or in a list, is an error in the loop that
        runs; the next loop finds it where it is.

    Args:
        data: An array, a tensor or whatever `to_torch` makes a tensor of; a tuple, dict, dataclass or other structure
            of these, in which None stays None; a result of `read` or a path, which is the dict of what is in the file,
            or of the files in the folder, of shards the dict of the data set; the ``values()`` of such a result, of
            which each array is a sample; a list of samples; or a map-style ``Dataset``. All of one length n. Inside a
            structure only a ``pathlib.Path`` is a path. Records and tables give dicts of their columns. A tuple is a
            structure, a list is rows: numbers, texts, pictures, arrays, or samples that are dicts or tuples of these.
            Arrays of several shapes and ragged rows come as lists of tensors, texts as lists; text and bytes of a NumPy
            array are numbers, as `to_torch` has them, its code points, and ``array.tolist()`` keeps them. Rows of a
            tensor come without their gradients.
        batch_size: Samples of a batch, of each rank.
        shuffle: True takes the rows in random order. ``"window"`` cuts them into blocks that lie together, takes the
            blocks in random order and shuffles the rows within every ``window`` places of that, for files that are
            faster read in stretches: a window reads its blocks and nothing else.
        window: Rows that are mixed with each other under ``shuffle="window"``; None is as many as make 256 MB, at least
            1024. A block is a 256th of it, in whole chunks of a file. So a batch is made of rows from up to 256 places
            of the data: where these are sorted by label, the labels of a batch of 256 scatter about 1.5 times as much
            as in a full shuffle, as those of 110 rows of one would. With all rows in one window it is a full shuffle.
        seed: What the order depends on, besides the epoch: any number that ``torch.manual_seed`` takes.
        weights: A number for every row: how likely it is to be drawn, with replacement.
        num_samples: How many are drawn in an epoch under ``weights``; None is n.
        sampler: An iterable of row numbers in the order of an epoch, as those of ``torch.utils.data``: it is iterated
            to its end for every epoch, with the global generators seeded by ``seed`` and the epoch, and is told the
            epoch where it has ``set_epoch``. It gives the part of this process alone. A list, an array or an iterator
            is read once, is the order of every epoch, and what it holds is dealt to all ranks;
            ``torch.utils.data.SubsetRandomSampler(rows)`` takes the same rows in an order of their own for every epoch.
            Negative numbers count from the end.
        batch_sampler: The same of lists of row numbers, one for each batch, of any lengths. An empty one is a batch of
            no rows; of a ``Dataset`` that is an error without ``collate_fn``, for nothing says what is in it.
        drop_last: Whether a last batch that would be smaller is left out.
        rank: Which of ``world_size`` processes this is: each gets a part of its own of every step, all take the same
            number of steps. None is what torch.distributed says, where it is initialised when the loader is made, and
            else 0; it is 0 of 1 with a ``sampler``, which knows of the others or is for this process alone. Where
            torch.distributed says it, every process has to begin every loop: they wait for each other as it begins,
            and raise if they differ in the data, the order, the seed, the state or the steps.
        world_size: How many processes share an epoch.
        device: Where batches are wanted; None is the CPU. For CUDA they are gathered into pinned memory and copied on a
            stream of their own, and are safe on the stream that is current when they are handed out.
        float_dtype: Casts floating leaves while they are gathered; integers, labels and pixels stay.
        image: Options of `image_to_torch` (``scale``, ``mean``, ``std``, ``dtype``, ``memory_format``), or True for
            none: leaves whose rows are pictures of uint8 or uint16, HW or HWC with 1, 3 or 4 channels, become planes
            while they are gathered. A dict by leaf, ``{"photo": {"mean": 0.5}, "depth": True}``, names them instead,
            and may name floating ones; a leaf is named by its key, or by its path such as ``"['x'][0]"``. Of a
            ``Dataset`` these are the leaves of a batch.
        pad_value: Makes a batch of ragged rows, and of any list of arrays, a tuple of one tensor, filled up with
            this, and their lengths, as `stack` does. Without it ragged rows are lists of tensors. A dict gives leaves
            a value each.
        collate_fn: Makes a batch of a list of samples of a ``Dataset``; None is `collate`.
        threads: How many threads gather ahead; 0 gathers each batch when it is asked for. None decides. What they
            share with the loop is the order of the batches alone, so any number gives the same ones; ``no_grad``,
            ``autocast`` and the default device of the loop are not theirs, and no batch is made under them. Unless this
            is 2 or more a ``Dataset`` is asked by one thread at a time: one made for processes may hold what threads
            cannot share, such as the position in a file.
        prefetch: How many batches may be ready or in the works before they are asked for; 0 is as ``threads=0``. None
            decides, within a bound in bytes.

    Attributes:
        epoch: The epoch that a loop has begun, or the one that the next loop begins.
        seed: What the order depends on, besides the epoch.
        batch_size: As given; None with a ``batch_sampler``.
        drop_last: As given.
        rank: Which process this is.
        world_size: Of how many.

    Raises:
        ShapeMismatchError: Two arrays of the data are not of one length.
        InvalidOptionError: An option has no such value, or two exclude each other; as a loop begins, processes differ.
        UnsupportedTypeError: The data has no rows, or is packed as one piece that memory has no room for.
        FormatError: A file is not what it claims to be.
        TypeError: An option has no such name; says what to write in the place of those of a ``DataLoader``.

    Warns:
        UserWarning: A random order would decode a chunk of a file for almost every row; or a folder is columns by the
            file, of which there are more than rows, all alike, so that each file is more likely a sample.

    >>> import numpy as np, ndtorch as nd
    >>> data = {"x": np.arange(10.0).reshape(5, 2), "y": np.arange(5)}
    >>> loader = nd.Loader(data, batch_size=2, float_dtype="float32")
    >>> [batch["y"].tolist() for batch in loader]
    [[0, 1], [2, 3], [4]]
    >>> loader
    <Loader: 5 rows in batches of 2, sequential, seed 0, epoch 1>
    """

    @names_what_is_meant(OF_DATALOADER)
    def __init__(
        self,
        data: Any,
        batch_size: int = 1,
        *,
        shuffle: bool | Literal["window"] = False,
        window: int | None = None,
        seed: int = 0,
        weights: Any = None,
        num_samples: int | None = None,
        sampler: Any = None,
        batch_sampler: Any = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        device: Any = None,
        float_dtype: Any = None,
        image: Any = None,
        pad_value: Any = None,
        collate_fn: Callable[[Sequence[Any]], Any] | None = None,
        threads: int | None = None,
        prefetch: int | None = None,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self._sources = sources_of(data, SourceOptions(float_dtype, image, pad_value, collate_fn, threads))
        columns = self._sources.columns
        self._ordering = ordering_of(
            self._sources.length,
            OrderOptions(shuffle, window, weights, num_samples, sampler, batch_sampler),
            row_bytes=sum(column.nbytes for column in columns),
            stretch=max(column.stretch for column in columns),
        )
        if shuffle is True or weights is not None:
            warn_of_scattered(columns, stacklevel=4)
        self._progress = Progress(self._ordering, seed_of(seed))
        self.drop_last = switch("drop_last", drop_last)
        size = whole_number("batch_size", batch_size, least=1)
        if batch_sampler is not None:
            exclude(
                "batch_sampler", "a batch_sampler makes the batches", batch_size=size != 1, drop_last=self.drop_last
            )
        self.batch_size: int | None = size if batch_sampler is None else None
        self.rank, self.world_size = ranks_of(rank, world_size, is_own=draws_for_itself(self._ordering))
        self._agreement = agreement_of(Ranks(self.rank, self.world_size), is_found=rank is None)
        self._placement = placement_of(device)
        self._wishes = wishes_of(threads, prefetch)
        if not draws_for_itself(self._ordering):
            len(self)  # says what cannot be dealt before a loop begins

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and (name in vars(self) or hasattr(type(self), name)):
            raise AttributeError(f"{SUBJECT}: {name} cannot be set once the loader is made. Hint: {_FIXED[name]}.")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        order = self._ordering.facts()["order"]
        rank = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        size = "" if self.batch_size is None else f" in batches of {self.batch_size}"
        return f"<Loader: {self._counts()}{size}, {order}, seed {self.seed}, epoch {self.epoch}{rank}>"

    def _counts(self) -> str:
        """How many rows there are; where an epoch has another number of samples, as far as that is known, both."""
        rows = self._sources.length
        try:
            samples = rows if self.batch_size is None else self._ordering.length
        except UnsupportedTypeError:  # a sampler does not say
            samples = rows
        return f"{rows} rows" if samples == rows else f"{samples} samples of {rows} rows"

    def __len__(self) -> int:
        """Batches of a whole epoch, the same for every rank.

        Raises:
            UnsupportedTypeError: A sampler does not say how many it gives.
        """
        length = self._ordering.length
        return length if self.batch_size is None else self._dealing(length).steps

    def __iter__(self) -> Iterator[Any]:
        # A loop begins when its first batch is asked for: iter() alone, by which frameworks see whether they can
        # iterate, costs no epoch.
        return Epoch(self._beginning)

    def _beginning(self) -> Beginning:
        """Begin the epoch that is due, or what is left of it."""
        order, position, loop = self._progress.begin()
        dealing = self._steps(order, position)
        columns = self._sources.columns
        if self._agreement is not None:
            self._agreement.check(self._facts(position, dealing.steps))
        samples = order.length // max(dealing.steps, 1) // self.world_size
        pace = self._wishes.pace(
            dealing.steps,
            2 * samples * sum(column.nbytes for column in columns),
            is_grouped=all(column.is_grouped for column in columns),
            is_slow=any(column.is_slow for column in columns),
        )
        progress = self._progress
        return Beginning(
            Batches(self._sources, order, dealing, self.rank, self._placement),
            dealing,
            self._placement,
            pace,
            self._sources.rebuild,
            lambda position, is_last: progress.stepped(loop, position, is_last),
            lambda: progress.end(loop),
        )

    def _facts(self, position: int, steps: int) -> dict[str, Any]:
        """What has to be the same in all processes that share an epoch."""
        leaves = zip(self._sources.paths, self._sources.columns, strict=True)
        return {
            **{f"data{path}": column.fingerprint for path, column in leaves},
            **self._ordering.facts(),
            "seed": self.seed,
            "epoch": self.epoch,
            "position": position,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "steps": steps,
        }

    def _steps(self, order: Order, position: int) -> Steps:
        return self._dealing(order.length, position) if order.bounds is None else Batched(order.bounds, position)

    def _dealing(self, length: int, start: int = 0) -> Dealing:
        return Dealing(length, self.batch_size or 1, self.world_size, self.drop_last, start)

    # --- in another process

    def __getstate__(self) -> dict[str, Any]:
        # Threads and columns stay here: a copy makes its own of the same data, and goes on where this one stands.
        public = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"arguments": self._arguments, "public": public, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Loader.__init__(self, **state["arguments"])
        vars(self).update(state["public"])
        self.load_state_dict(state["state"])

    # --- going on later

    @property
    def epoch(self) -> int:
        """The epoch that a loop has begun, or the one that the next loop begins."""
        return self._progress.epoch

    @property
    def seed(self) -> int:
        """What the order depends on, besides the epoch; that of a state that was loaded."""
        return self._progress.seed

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop this epoch, as torch's samplers for several processes have it.

        A loader that a state has put into the midst of that very epoch goes on from there, so a loop over epochs that
        calls this needs no exception for the first one after a restart.

        >>> import numpy as np, ndtorch as nd
        >>> loader = nd.Loader(np.arange(4), batch_size=4, shuffle=True)
        >>> first = [batch.tolist() for batch in loader]
        >>> loader.set_epoch(0)
        >>> [batch.tolist() for batch in loader] == first
        True
        """
        self._progress.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Say where the loop stands: what has been handed out, not what has been gathered ahead.

        The state is numbers and text alone, and fits into JSON. Of several loops at a time it is that of the last one
        begun. After the last batch it is the beginning of the next epoch.

        >>> import numpy as np, ndtorch as nd
        >>> loader = nd.Loader(np.arange(4), batch_size=2)
        >>> batch = next(iter(loader))
        >>> loader.state_dict()
        {'version': 1, 'epoch': 0, 'position': 2, 'seed': 0, 'order': 'sequential', 'rows': 4}
        """
        return self._progress.state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Make the next loop go on where a loader stood, with its seed.

        The batches that follow are those that it would have given, whatever the threads, and in the same order also
        with another ``batch_size`` or ``world_size``, except that a ``batch_sampler`` makes its own batches and that a
        sampler is the one of its process. A loop that runs goes on as before and no longer counts.

        Raises:
            InvalidOptionError: That loader had other data or another order; names what differs. Nothing is changed.

        >>> import numpy as np, ndtorch as nd
        >>> loader, other = (nd.Loader(np.arange(6), batch_size=2) for _ in range(2))
        >>> batch = next(iter(loader))
        >>> other.load_state_dict(loader.state_dict())
        >>> [batch.tolist() for batch in other]
        [[2, 3], [4, 5]]
        """
        self._progress.load(state_dict)
