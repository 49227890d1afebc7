"""placeholder"""

from data_pipelines.builder import StudyBuilder


class MimicCxr(StudyBuilder, skip_registration=True):
    pass
