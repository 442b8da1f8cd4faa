"""From samples to text: ESPnet's streaming transducers as recognisers."""

from edgeconv.recogniser.endpoint import EndpointRules
from edgeconv.recogniser.recogniser import Recogniser, load_recogniser
from edgeconv.recogniser.stream import RecogniserStream, Result

__all__ = ["EndpointRules", "Recogniser", "RecogniserStream", "Result", "load_recogniser"]
