"""Tasks on many processes or machines; joblib is the engine: loky here, or a Dask or Ray cluster.

A worker gets what the tasks have in common once, and keeps it. A worker that is killed costs what
it was at: that is done again elsewhere.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np

from onnxprune.errors import OnnxPruneError

TRIES: Final = 3  # how often killed workers are replaced
CONNECTING: Final = 10  # seconds
CHUNK: Final = 4  # tasks of a worker, where an engine tells of many at once alone


class Shop(Protocol):
    """What the tasks have in common; it can be pickled."""

    def trial(self, *key: Any) -> Any:
        """Do one task."""


@dataclass(frozen=True)
class Parcel:
    """A shop on its way to workers, who open it once.

    Attributes:
        key: its digest, by which workers know it.
        blob: the pickled shop (n,) of uint8, or a cluster's reference to it.
    """

    key: str
    blob: Any = field(compare=False, repr=False)


def _packed(shop: Shop) -> Parcel:
    import cloudpickle

    blob = np.frombuffer(cloudpickle.dumps(shop), np.uint8)
    return Parcel(hashlib.sha256(blob.tobytes()).hexdigest(), blob)


@lru_cache(maxsize=1)
def _opened(parcel: Parcel) -> Shop:
    blob = parcel.blob
    if not isinstance(blob, np.ndarray):
        import ray

        blob = ray.get(blob)
    return pickle.loads(memoryview(blob))  # type: ignore[no-any-return]


def _one(parcel: Parcel, key: tuple[Hashable, ...]) -> tuple[tuple[Hashable, ...], Any]:
    """What a worker is asked for."""
    return key, _opened(parcel).trial(*key)


def results(
    shop: Shop, keys: Sequence[tuple[Hashable, ...]], jobs: int, cluster: str | None
) -> Iterator[Any]:
    """The results of tasks, as they are done.

    Args:
        shop: what does them.
        keys: the arguments of each.
        jobs: how many at once; 1 does them here, without joblib.
        cluster: ``dask://HOST:PORT`` or ``ray`` instead.

    Raises:
        OnnxPruneError: the engine is not known, not installed, can't be reached, or breaks down.
    """
    if jobs == 1 and cluster is None:
        for key in keys:
            yield shop.trial(*key)
        return
    try:
        import cloudpickle  # noqa: F401
        import joblib
    except ImportError as error:
        raise OnnxPruneError(
            f"{error.name} is not installed, and trials in parallel need it: pip install "
            "'onnxprune[jobs]'"
        ) from error
    left = list(keys)
    with _engine(_packed(shop), jobs, cluster) as (parcel, chunk):
        for _ in range(TRIES):
            try:
                while left:
                    tasks = (joblib.delayed(_one)(parcel, key) for key in left[:chunk])
                    how = "generator_unordered" if chunk is None else "list"
                    for key, result in joblib.Parallel(batch_size=1, return_as=how)(tasks):
                        left.remove(key)
                        yield result
            except BrokenProcessPool:
                continue  # what was done is done; the others begin again in new processes
            return
    raise OnnxPruneError(
        f"workers were killed {TRIES} times, perhaps for want of memory: give fewer --jobs; what "
        "was done is kept"
    )


@contextmanager
def _engine(parcel: Parcel, jobs: int, cluster: str | None) -> Iterator[tuple[Parcel, int | None]]:
    """joblib set to an engine.

    Yields:
        the parcel as the engine carries it, and how many tasks it takes at a time (None: all, and
        it tells of each as it is done).

    Raises:
        OnnxPruneError: the engine is not known, not installed, or can't be reached.
    """
    import joblib

    if cluster is None:
        with joblib.parallel_config("loky", n_jobs=jobs, inner_max_num_threads=1):
            yield parcel, None
    elif cluster == "ray":
        with _ray(parcel) as carried:
            yield carried
    elif cluster.startswith("dask://"):
        with _dask(cluster), joblib.parallel_config("dask", n_jobs=-1, scatter=[parcel]):
            yield parcel, None
    else:
        raise OnnxPruneError(f"the cluster is '{cluster}': give dask://HOST:PORT or ray")


@contextmanager
def _dask(cluster: str) -> Iterator[None]:
    """A connection to a scheduler; joblib finds it."""
    try:
        from distributed import Client
    except ImportError as error:
        raise OnnxPruneError("Dask is not installed: pip install 'onnxprune[dask]'") from error
    try:
        client = Client(f"tcp://{cluster.removeprefix('dask://')}", timeout=CONNECTING)
    except (OSError, ValueError) as error:
        raise OnnxPruneError(f"the cluster '{cluster}' can't be reached: {error}") from error
    with client:
        yield


@contextmanager
def _ray(parcel: Parcel) -> Iterator[tuple[Parcel, int]]:
    """The cluster that RAY_ADDRESS names or that is connected already, else one here."""
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise OnnxPruneError("Ray is not installed: pip install 'onnxprune[ray]'") from error
    import joblib

    register_ray()
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(log_to_driver=False)
        except (ConnectionError, RuntimeError) as error:
            raise OnnxPruneError(f"the cluster 'ray' can't be reached: {error}") from error
    try:
        workers = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        with joblib.parallel_config("ray", n_jobs=-1):
            yield replace(parcel, blob=ray.put(parcel.blob)), CHUNK * workers
    finally:
        if mine:
            ray.shutdown()
