"""What can go wrong with things users type, feed and store. The command line prints these without a traceback."""


class StapesError(ValueError):
    """A mistake of input, not of the program: the message says where, what with its value, and the way out."""

    exit_code = 1


class RecipeError(StapesError):
    """A recipe that cannot be read or says something impossible."""

    exit_code = 2


class UsageError(StapesError):
    """A command line that names something that does not exist or contradicts itself."""

    exit_code = 2


class AudioError(StapesError):
    """An audio file or array that cannot be used."""


class ManifestError(StapesError):
    """A manifest or corpus that cannot be read; the message names file and line."""


class WeightsError(StapesError):
    """Weights that cannot be found or do not match their checksum."""


class ModelFolderError(StapesError):
    """A model folder that lacks a file or does not fit what is asked of it."""
