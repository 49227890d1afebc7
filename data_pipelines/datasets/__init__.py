"""One TFDS builder a dataset. `BUILDERS` names them for `medclip-jax prepare`."""

BUILDERS: dict[str, str] = {
    "mimic_cxr": "data_pipelines.datasets.mimic_cxr:MimicCxr",
    "chexpert": "data_pipelines.datasets.chexpert:Chexpert",
    "csv": "data_pipelines.datasets.csv_folder:CsvFolder",
}
