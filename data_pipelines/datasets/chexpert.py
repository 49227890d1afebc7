"""placeholder"""

from data_pipelines.builder import StudyBuilder


class Chexpert(StudyBuilder, skip_registration=True):
    pass
