"""Our feature service over the rows of W-ONLINE, as a process: `python _serve.py ADDRESS_OF_STORE PORT`."""

import sys

from bench.features import _online

from vitok.features import FeatureReader
from vitok.serving import serve
from vitok.serving.feature_service import FeatureEndpoint, feature_application


def main() -> None:
    store, port = sys.argv[1:]
    with FeatureReader(_online.features(), store) as reader:
        endpoint = FeatureEndpoint("pit", reader)
        serve(feature_application([endpoint]), [endpoint], port=int(port))


if __name__ == "__main__":
    main()
