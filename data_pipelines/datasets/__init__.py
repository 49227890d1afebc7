"""One TFDS builder a dataset. `BUILDERS` names them for `medclip-jax prepare`."""

BUILDERS: dict[str, str] = {
    "mimic_cxr": "data_pipelines.datasets.mimic_cxr:MimicCxr",
    "chexpert": "data_pipelines.datasets.chexpert:Chexpert",
    "ms_cxr": "data_pipelines.datasets.ms_cxr:MsCxr",
    "ms_cxr_t": "data_pipelines.datasets.ms_cxr_t:MsCxrT",
    "radnli": "data_pipelines.datasets.nli:RadNli",
    "mednli": "data_pipelines.datasets.nli:MedNli",
    "covidx": "data_pipelines.datasets.covidx:Covidx",
    "covid_radiography": "data_pipelines.datasets.covid_radiography:CovidRadiography",
    "rsna": "data_pipelines.datasets.rsna:Rsna",
    "mura": "data_pipelines.datasets.mura:Mura",
    "siim": "data_pipelines.datasets.siim:Siim",
    "nih_cxr14": "data_pipelines.datasets.nih_cxr14:NihCxr14",
    "openi": "data_pipelines.datasets.openi:Openi",
    "shenzhen": "data_pipelines.datasets.tuberculosis:Shenzhen",
    "montgomery": "data_pipelines.datasets.tuberculosis:Montgomery",
    "roco": "data_pipelines.datasets.roco:Roco",
    "padchest": "data_pipelines.datasets.padchest:PadChest",
    "vindr_cxr": "data_pipelines.datasets.vindr_cxr:VinDrCxr",
    "csv": "data_pipelines.datasets.csv_folder:CsvFolder",
}
