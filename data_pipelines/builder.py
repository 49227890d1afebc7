"""The TFDS builder that every dataset's builder is made from.

A dataset is two TFDS datasets: the builder's configs `images` and `reports`. What TFDS
gives is the schema, the names of the shards and the metadata, so that
`tfds.data_source` and Grain read the folders; no TensorFlow is needed for any of it.

The shards are written by one Beam pipeline whose elements are parts of the plan, not
films: TFDS's own Beam writer sends every film through a GroupByKey, which the
DirectRunner holds in memory and which an interruption loses. The order within a split
is that of a hash of the ids, as TFDS has it.
"""

import contextlib
import io
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TextIO

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder
from tensorflow_datasets.core import splits as splits_lib
from tqdm import tqdm

from data_pipelines import parts, records
from data_pipelines.findings import SPLITS
from data_pipelines.plan import FilmPlan, ReportPlan, Scan, to_json
from medclip_jax.errors import UserError

MAX_PER_PART = 2048  # films of 512 px: about 200 MB a shard
MIN_PER_PART = 64
PARTS_WANTED = 16  # a small dataset still feeds that many workers


class StudyBuilder(
    dataset_builder.FileReaderBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """Films and reports, joined by study. One subclass a dataset, in `datasets/`."""

    def __init_subclass__(cls, **options: Any) -> None:
        # TFDS has builders of the same names: ours stay out of its registry.
        super().__init_subclass__(**{"skip_registration": True, **options})

    VERSION = tfds.core.Version(f"{records.SCHEMA_VERSION}.0.0")
    BUILDER_CONFIGS: ClassVar[list] = [
        tfds.core.BuilderConfig(name=kind) for kind in records.FIELDS
    ]
    # Nothing is downloaded. TFDS would look for checksums beside the module, by way of
    # the package importlib_resources, which it does not install.
    url_infos: ClassVar[dict] = {}
    DESCRIPTION: ClassVar[str] = ""
    HOMEPAGE: ClassVar[str] = ""
    CITATION: ClassVar[str] = ""
    NOTICE: ClassVar[str] = ""  # what whoever uses the data is bound to
    # Sets that are there to be evaluated on are no training data unless named.
    FOR_PRETRAINING: ClassVar[bool] = False
    # How other sets name the patients, for --hold-out: in paths (a regular expression)
    # and in a column, whose cells get the prefix. "" where no other set names them.
    PATIENT_IN_PATH: ClassVar[str] = ""
    PATIENT_COLUMN: ClassVar[tuple[str, str]] = ("", "")

    jobs: Sequence[parts.Job] = ()
    finished: Sequence[parts.Part] = ()

    @staticmethod
    def add_arguments(parser) -> None:
        """Adds the dataset's own options to a parser."""

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the raw folder's tables into a plan."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=records.features(self.builder_config.name),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
        )

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        del dl_manager  # nothing is downloaded: the user brings the raw folder
        run_jobs(
            self.jobs,
            self.builder_config.name,
            download_config.beam_runner,
            download_config.beam_options,
        )
        done = [parts.load_part(job) for job in self.jobs]
        if any(part is None for part in done):
            missing = [j.out for j, part in zip(self.jobs, done) if part is None]
            raise RuntimeError(
                f"{len(missing)} parts were not written, the first is {missing[0]}; "
                "do the Beam workers see the output folder under the same path?"
            )
        self.finished = [part for part in done if part is not None]
        infos = []
        for split in SPLITS:
            chosen = [p for p in self.finished if p.job.split == split and p.records]
            if chosen:
                infos.append(self._take(split, chosen))
        self.info.set_splits(splits_lib.SplitDict(infos))

    def _take(self, split: str, chosen: list[parts.Part]) -> splits_lib.SplitInfo:
        """Gives the finished parts of a split their names as TFDS shards."""
        template = self._get_filename_template(split_name=split)
        for index, part in enumerate(chosen):
            shard = template.sharded_filepath(shard_index=index, num_shards=len(chosen))
            try:
                os.link(part.job.out, shard)  # the part stays, should we be stopped
            except OSError:
                shutil.copyfile(part.job.out, shard)
        return splits_lib.SplitInfo(
            name=split,
            shard_lengths=[part.records for part in chosen],
            num_bytes=sum(part.size for part in chosen),
            filename_template=template,
        )


def simulated(builder_class: type[StudyBuilder], notice: str) -> type[StudyBuilder]:
    """The same builder for simulated data, which must not pass for the real."""

    class Simulated(builder_class):  # type: ignore[misc, valid-type]
        name = builder_class.name
        DESCRIPTION = NOTICE = notice
        HOMEPAGE = CITATION = ""

    return Simulated


def write_plan(
    kind: str,
    items: Sequence[FilmPlan] | Sequence[ReportPlan],
    work: Path,
    raw: Path,
    dataset: str,
    size: int,
) -> list[parts.Job]:
    """Cuts a plan into parts and writes each as JSON lines.

    Args:
      kind: "images" or "reports".
      items: in their final order (see `plan.settle`).
      work: the folder of unfinished work.
      raw: the raw folder.
      dataset: the dataset's name.
      size: the stored short side, px.

    Returns:
      The jobs, in the order of the rows.
    """
    (work / "plan").mkdir(parents=True, exist_ok=True)
    (work / "parts").mkdir(parents=True, exist_ok=True)
    a_part = min(max(-(-len(items) // PARTS_WANTED), MIN_PER_PART), MAX_PER_PART)
    jobs = []
    for split in SPLITS:
        chosen = [item for item in items if item.split == split]
        for index in range(0, len(chosen), a_part):
            name = f"{kind}-{split}-{index // a_part:05d}"
            plan = work / "plan" / f"{name}.jsonl"
            lines = [to_json(item) + "\n" for item in chosen[index : index + a_part]]
            temporary = plan.with_suffix(".tmp")
            temporary.write_text("".join(lines), encoding="utf-8")
            os.replace(temporary, plan)
            jobs.append(
                parts.Job(
                    kind=kind,
                    split=split,
                    index=index // a_part,
                    plan=str(plan),
                    out=str(work / "parts" / f"{name}.array_record"),
                    raw=str(raw),
                    dataset=dataset,
                    size=size,
                )
            )
    return jobs


def build(
    builder_class: type[StudyBuilder],
    jobs: Sequence[parts.Job],
    work: Path,
    target: Path,
    beam_runner: Any,
    beam_options: Any,
) -> list[parts.Part]:
    """Runs the jobs of one kind and puts the TFDS folder at `target`.

    Returns:
      The finished parts. When they hold no record at all there is no folder.
    """
    if not jobs:
        return []
    home = work / "tfds"
    shutil.rmtree(home, ignore_errors=True)
    builder = builder_class(
        config=jobs[0].kind, data_dir=home, file_format="array_record"
    )
    builder.jobs = jobs
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of downloads
        builder.download_and_prepare(
            download_dir=home / "downloads",
            download_config=tfds.download.DownloadConfig(
                beam_runner=beam_runner,
                beam_options=beam_options,
                try_download_gcs=False,
                compute_stats=tfds.download.ComputeStatsMode.SKIP,
            ),
        )
    shutil.rmtree(target, ignore_errors=True)
    if any(part.records for part in builder.finished):
        builder.data_path.rename(target)
    shutil.rmtree(home, ignore_errors=True)
    return list(builder.finished)


def run_jobs(
    jobs: Sequence[parts.Job], kind: str, beam_runner: Any, beam_options: Any
) -> None:
    """Writes the parts that are not there yet, by one Beam pipeline."""
    waiting = [job for job in jobs if parts.load_part(job) is None]
    log = Path(jobs[0].plan).parent.parent / "beam.log"
    with _aside(log, beam_runner) as terminal, _progress(jobs, kind, terminal):
        if not waiting:
            return
        for job in waiting:
            job.progress.unlink(missing_ok=True)
            job.done.unlink(missing_ok=True)
        beam = import_beam()
        try:
            with beam.Pipeline(runner=beam_runner, options=beam_options) as pipeline:
                _ = (
                    pipeline
                    | "Parts" >> beam.Create(waiting)
                    | "Spread" >> beam.Reshuffle()
                    | "Write" >> beam.Map(parts.write_part)
                )
        except Exception as error:  # noqa: BLE001
            # Beam repeats the trace for each of its layers; the log has them all.
            said = (str(error).strip() or type(error).__name__).splitlines()[-1]
            with log.open("a") as file:
                file.write(f"{error}\n")
            raise RuntimeError(f"a worker failed: {said}; see {log}") from None


def import_beam():
    """Imports Beam without its remarks on Google client libraries.

    Raises:
      UserError: Beam is not installed.
    """
    logging.disable(logging.WARNING)
    try:
        import apache_beam
    except ImportError:
        raise UserError(
            "prepare needs Apache Beam, which is not installed: pip install apache-beam"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


@contextlib.contextmanager
def _aside(log: Path, beam_runner: Any) -> Iterator[TextIO]:
    """Sends what local Beam workers say to a file; gives the real stderr.

    Every worker process tells its life at level INFO, which no option changes.
    """
    if isinstance(beam_runner, str):  # on a cluster: let the user see it
        yield sys.stderr
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with os.fdopen(os.dup(2), "w") as terminal:
        try:
            with log.open("ab") as file:
                os.dup2(file.fileno(), 2)
            yield terminal
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextlib.contextmanager
def _progress(jobs: Sequence[parts.Job], kind: str, terminal: TextIO) -> Iterator[None]:
    """A progress bar fed by the small files that the workers leave."""
    totals = {job: Path(job.plan).read_bytes().count(b"\n") for job in jobs}
    stop = threading.Event()
    bar = tqdm(
        total=sum(totals.values()),
        desc=f"  {kind}",
        file=terminal,
        unit=" records",
        mininterval=0.5,
    )

    def poll() -> None:
        interval = 0.5 if terminal.isatty() else 5.0  # a log file needs few lines
        while True:
            ended = stop.wait(interval)
            bar.n = sum(_seen(job, total) for job, total in totals.items())
            bar.refresh()
            if ended:
                return

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        bar.close()


def _seen(job: parts.Job, total: int) -> int:
    if job.done.exists():
        return total
    try:
        return min(int(job.progress.read_text() or 0), total)
    except (OSError, ValueError):
        return 0
