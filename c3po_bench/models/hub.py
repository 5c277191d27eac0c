"""The hub, asked once whether it is there: without a network its libraries would try for a minute, each on its own."""

import contextlib
import logging
import os
import threading
from functools import cache

from datasets import config as datasets_config
from huggingface_hub import constants, get_session

SECONDS = 4.0
"""How long the hub may take to answer anything at all."""

log = logging.getLogger(__name__)


@cache
def reachable() -> bool:
    """Whether the hub answers; where it does not, its libraries take what their caches hold and ask no more.

    As with HF_HUB_OFFLINE=1, which is obeyed without asking. A proxy of the environment is used as they use
    it.
    """
    if constants.is_offline_mode():
        return False
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever fails: it is not there
            answer = get_session().head(constants.ENDPOINT, timeout=SECONDS)
            if answer.status_code < 400 or answer.status_code == 404:  # a mirror without a front page
                answered.set()  # a proxy's refusal is no hub

    asking = threading.Thread(target=ask, daemon=True)  # looking up the name has no time limit of its own
    asking.start()
    asking.join(SECONDS)
    if not answered.is_set():
        log.warning(
            "%s does not answer: only what its cache on this machine holds can be used", constants.ENDPOINT
        )
        os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that are started from here
        constants.HF_HUB_OFFLINE = datasets_config.HF_HUB_OFFLINE = True
    return answered.is_set()
