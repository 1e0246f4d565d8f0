"""A C-STORE SCP (PS3.4, annex B): stores what a PACS pushes in the inbox, byte for byte.

pynetdicom does the networking. This adds limits on peers: PDUs are limited in size and time, and
data sets are written to disk as they arrive instead of being collected in memory. On the same port
nodes report on storage commitment (annex J), for which documents asked them.
"""

import logging
import re
import select
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from typing import Any, Self, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import (
    AE,
    build_context,
    evt,
)
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, N_EVENT_REPORT_RQ, DIMSEMessage
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from engine.errors import SettingsError
from engine.settings import ReceiveSettings
from indexer.sources.pushed.arrival import Answer, Arrival
from indexer.sources.pushed.commitment import CommitmentNodes, answer_to, report_context
from indexer.sources.pushed.inbox import Inbox
from indexer.sources.pushed.sop_classes import accepted_sop_classes, accepted_transfer_syntaxes
from indexer.sources.pushed.turned_away import TurnedAway

__all__ = ["StoreScp"]

_VERIFICATION = "1.2.840.10008.1.1"
_AE_TITLE = re.compile(r"(?=.*[^ ])[ -\[\]-~]{1,16}")
"""PS3.5, 6.2: printable ASCII without backslash, and not spaces alone."""

_PDU_BYTES = 128 * 1024
"""The maximum PDU size that senders are told."""
_LARGEST_PDU_BYTES = 1024**2
"""A longer PDU ends the connection. Association requests with very many contexts may exceed what
senders are told."""
_COMMAND_BYTES = 64 * 1024
_REPORT_BYTES = 1024**2
"""The largest report on storage commitment: those of some thousand instances are smaller."""
_RECEIVE_BYTES = 64 * 1024

_ASSOCIATE_SECONDS = 15.0
"""Time limit from a connection to its association request."""
_SILENT_SECONDS = 120.0
"""Time limit for a sender's pause, and for one PDU."""
_CLOSE_SECONDS = 20.0

_log = logging.getLogger(__name__)


class StoreScp:
    """Accepts associations of the allowed AE titles, between :meth:`start` and :meth:`stop`.

    While it runs, log messages and warnings of pynetdicom and pydicom are suppressed in the whole
    process: they would quote what peers send.

    Args:
        nodes: may report on storage commitment, and nothing else unless they are allowed to send;
            None = there are none.

    Raises:
        SettingsError: no AE title is allowed to send or to report, or one is invalid.
    """

    def __init__(self, receive: ReceiveSettings, nodes: CommitmentNodes | None = None) -> None:
        if not receive.allowed_ae_titles and nodes is None:
            raise SettingsError(
                "receive.allowed_ae_titles is empty, so that nobody may send; name the AE titles "
                "that may, as in PRECEDENT_RECEIVE__ALLOWED_AE_TITLES='[\"PACS\"]'"
            )
        _check_title("ae_title", receive.ae_title)
        for title in receive.allowed_ae_titles:
            _check_title("allowed_ae_titles", title)
        self.ae_title = receive.ae_title.strip()
        self._allowed = [title.strip() for title in receive.allowed_ae_titles]
        self._nodes = nodes
        self._address = (receive.host, receive.port)
        self._refusing = False
        self._server: ThreadedAssociationServer | None = None
        self._silence = ExitStack()
        self._ae = AE(self.ae_title)
        self._ae.require_called_aet = True
        self._ae.require_calling_aet = [*self._allowed, *(nodes.called if nodes else ())]
        self._ae.maximum_associations = receive.max_associations
        self._ae.maximum_pdu_size = _PDU_BYTES
        self._ae.acse_timeout = _ASSOCIATE_SECONDS
        self._ae.dimse_timeout = _SILENT_SECONDS
        self._ae.network_timeout = _SILENT_SECONDS
        self.contexts = _contexts(accepted_sop_classes(receive.sop_classes))
        self._with_reports = _Contexts([*self.contexts, report_context()])
        self._reports_alone = _Contexts([build_context(_VERIFICATION), report_context()])

    def start(self, inbox: Inbox) -> int:
        """Starts listening; returns the port. Received instances go to ``inbox``.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        self._silence.enter_context(_silence())
        try:
            server = self._ae.start_server(
                self._address,
                block=False,
                contexts=self.contexts,
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, self._opened, [inbox]),
                    (evt.EVT_CONN_CLOSE, self._closed),
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_ACCEPTED, self._accepted),
                    (evt.EVT_REJECTED, self._rejected),
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_N_EVENT_REPORT, self._reported),
                ],
            )
        except OSError as error:
            self._silence.close()
            host, port = self._address
            raise SettingsError(
                f"cannot listen on {host}:{port} ({error.strerror}); "
                "choose another with --host and --port"
            ) from None
        self._server = cast(ThreadedAssociationServer, server)
        return int(self._server.server_address[1])

    def stop(self, seconds: float) -> None:
        """Accepts no more associations, and returns when the open ones have ended.

        Args:
            seconds: after these, open associations are cut off. Incomplete instances are
                discarded; their senders get no answer, and so know.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        _end(server)
        _wait(lambda: not server.active_associations, seconds)
        for association in server.active_associations:
            connection = association.dul.socket
            if connection is not None and connection.socket is not None:
                with suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)
        _wait(lambda: not server.active_associations, _CLOSE_SECONDS)
        self._silence.close()

    def _opened(self, event: Event, inbox: Inbox) -> None:
        """Replaces parts of a new connection by limited ones, before anything is read from it."""
        association = event.assoc
        accepted = cast(AssociationSocket, association.dul.socket)
        association.dul.socket = _Connection(accepted)
        # A daemon thread: no peer can keep this process from ending.
        association.dul.daemon = True
        association.dimse = _Messages(association, inbox)

    def _requested(self, event: Event) -> None:
        """Offers a node that may report what it may, under the title by which it knows us."""
        asked = event.assoc.requestor.primitive
        if asked is None or self._nodes is None:
            return
        titles = self._nodes.called.get(asked.calling_ae_title)
        if titles is None:
            return
        acceptor = event.assoc.acceptor
        sends = asked.calling_ae_title in self._allowed
        acceptor.supported_contexts = self._with_reports if sends else self._reports_alone
        if asked.called_ae_title in titles:
            acceptor.ae_title = asked.called_ae_title

    def _reported(self, event: Event) -> tuple[int, None]:
        """Answers an N-EVENT-REPORT. Runs in a thread of its own."""
        sender = event.assoc.requestor.ae_title
        if self._nodes is None:
            raise RuntimeError("a report came over a context that was not offered")
        return answer_to(lambda: event.event_information, sender, self._nodes), None

    def _closed(self, event: Event) -> None:
        network = event.assoc.dul
        if network.state_machine.current_state == "Sta2":
            # Its thread still waits for an association request, and would until its time limit
            # count as an open association. This wakes it up.
            network.to_user_queue.put(None)
        messages = event.assoc.dimse
        if isinstance(messages, _Messages):
            messages.discard()
            if messages.began is not None:
                peer = event.assoc.requestor
                turned = messages.turned_away
                turned.note_proposed(
                    str(one.abstract_syntax) for one in event.assoc.rejected_contexts
                )
                # Some senders end well whatever they were answered, so that this alone tells.
                _log.log(
                    logging.WARNING if turned else logging.INFO,
                    "association of %r at %s: %s instances taken, %s; %.1f s",
                    peer.ae_title,
                    peer.address,
                    messages.taken,
                    turned,
                    time.monotonic() - messages.began,
                )

    def _accepted(self, event: Event) -> None:
        messages = event.assoc.dimse
        if isinstance(messages, _Messages):
            messages.began = time.monotonic()

    def _rejected(self, event: Event) -> None:
        peer = event.assoc.requestor
        request = peer.primitive
        called = getattr(request, "called_ae_title", None)
        if peer.ae_title not in self._ae.require_calling_aet:
            why = f"its AE title {peer.ae_title!r} is not among receive.allowed_ae_titles"
        elif called != self.ae_title:
            why = f"it called {called!r}, and this is {self.ae_title!r}"
        else:
            why = "receive.max_associations are open"
        _log.warning("an association from %s was rejected: %s", peer.address, why)

    def _store(self, event: Event) -> Dataset | int:
        """Answers a C-STORE request whose data set is complete. Runs in its thread."""
        received = cast(Any, event.request).DataSet
        arrival = received.arrival if isinstance(received, _DataSet) else None
        answer = Answer.NO_DATA_SET if arrival is None else arrival.finish()
        self._note(answer, event.assoc.requestor.ae_title)
        messages = event.assoc.dimse
        if isinstance(messages, _Messages):
            if answer is Answer.STORED:
                messages.taken += 1
            else:
                messages.turned_away.note(answer.status, answer.comment, messages.sop_class)
        if answer is Answer.STORED:
            return answer.status
        told = Dataset()
        told.Status = answer.status
        told.ErrorComment = answer.comment
        return told

    def _note(self, answer: Answer, sender: str) -> None:
        """Logs refusals; of consecutive ones for lack of room only the first."""
        if answer is Answer.STORED:
            if self._refusing:
                _log.warning("instances are taken again")
            self._refusing = False
        elif answer.status == Answer.NO_ROOM.status:
            if not self._refusing:
                _log.warning("instances are refused for now: %s", answer.comment)
            self._refusing = True
        else:
            _log.warning("an instance from %r was refused: %s", sender, answer.comment)


class _Contexts(list[PresentationContext]):
    """The supported presentation contexts, shared by all associations: they are only read, and
    copying them would be the slowest part of a new connection."""

    def __deepcopy__(self, _: dict[int, object]) -> Self:
        return self


def _contexts(sop_classes: Iterable[str]) -> _Contexts:
    """Verification, and these SOP classes in every transfer syntax.

    Of several transfer syntaxes that a sender offers together, the first is taken.
    """
    syntaxes = build_context(_VERIFICATION, accepted_transfer_syntaxes()).transfer_syntax
    made = _Contexts([build_context(_VERIFICATION)])
    for sop_class in sop_classes:
        context = PresentationContext()
        context.abstract_syntax = UID(sop_class)
        # Not set: each would be checked again for each of more than a hundred SOP classes.
        context.transfer_syntax.extend(syntaxes)
        made.append(context)
    return made


class _Connection(AssociationSocket):
    """An accepted connection with limits on size and time of PDUs.

    Without them, six bytes of a PDU header from anybody make pynetdicom wait without limit for up
    to 4 GiB, and keep them in memory.
    """

    def __init__(self, accepted: AssociationSocket) -> None:
        # Copies all state; the __init__ of the base class would announce the connection again.
        vars(self).update(vars(accepted))
        cast(socket.socket, self.socket).settimeout(_SILENT_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether there is something to read. Unlike select, poll works for high descriptors."""
        if self.socket is None or not self._is_connected:
            return False
        poll = select.poll()
        try:
            poll.register(self.socket, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # the connection is closed
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Reads ``nr_bytes`` bytes, or fewer at the end of the connection.

        Raises:
            OSError: more are asked for than a PDU may have. TimeoutError: they take too long.
        """
        if nr_bytes > _LARGEST_PDU_BYTES:
            raise OSError("a PDU is too large")
        connection = cast(socket.socket, self.socket)
        deadline = time.monotonic() + _SILENT_SECONDS
        received = bytearray()
        while len(received) < nr_bytes:
            data = connection.recv(min(nr_bytes - len(received), _RECEIVE_BYTES))
            if not data:
                break
            if time.monotonic() > deadline:
                raise TimeoutError("a PDU takes too long")
            received += data
        return received

    def _shutdown_socket(self) -> None:
        """Closes the socket, also if the peer is gone."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


class _DataSet(BytesIO):
    """Takes the place of pynetdicom's buffer for a data set, and passes the bytes to an arrival.

    Args:
        begin: gives that; None = the data set is a small one, which is kept here.
    """

    def __init__(self, begin: Callable[[], Arrival | None]) -> None:
        super().__init__()
        self._begin = begin
        self.arrival: Arrival | None = None

    def write(self, data: Any, /) -> int:
        if self.arrival is None and self.tell() == 0:
            self.arrival = self._begin()
        if self.arrival is None:
            if self.tell() + len(data) > _REPORT_BYTES:
                raise ValueError("a report is too large")
            return super().write(data)
        self.arrival.write(data)
        return len(data)


class _Messages(DIMSEServiceProvider):
    """The DIMSE messages of an association, whose data sets go to the inbox. Used in the network
    thread."""

    def __init__(self, association: Association, inbox: Inbox) -> None:
        super().__init__(association)
        self.began: float | None = None
        """When the association was accepted, on the monotonic clock; None = it is not yet."""
        self.taken = 0
        """Instances so far."""
        self.turned_away = TurnedAway()
        self.sop_class = ""
        """As the last command with a data set named it."""
        self._inbox = inbox
        self._arrivals: list[Arrival] = []

    def receive_primitive(self, primitive: P_DATA) -> None:
        if self.message is None:
            self.message = DIMSEMessage()
            self.message.data_set = _DataSet(self._begin)
        try:
            if self.message.encoded_command_set.tell() > _COMMAND_BYTES:
                raise ValueError("a command set is too large")
            super().receive_primitive(primitive)
        except Exception as error:
            # Uncaught it would end the thread with a traceback that may quote the peer.
            kind, peer = type(error).__name__, self.assoc.requestor.ae_title
            _log.warning("an association with %r is ended: its message is invalid (%s)", peer, kind)
            self.discard()
            self.message = None
            self.dul.event_queue.put("Evt19")  # an invalid PDU: abort

    def discard(self) -> None:
        """Discards the arrivals that are not complete."""
        for arrival in self._arrivals:
            arrival.discard()
        self._arrivals = []

    def _begin(self) -> Arrival | None:
        """The arrival for the data set of the current message, whose command set is complete; None
        = it is a report."""
        message = self.message
        if isinstance(message, N_EVENT_REPORT_RQ):
            return None
        used = None if message is None else message.context_id
        accepted = self.assoc.accepted_contexts
        context = next((one for one in accepted if one.context_id == used), None)
        if context is None or not isinstance(message, C_STORE_RQ):
            # pynetdicom then aborts the association, or answers that the service is unknown.
            return self._inbox.turn_away(Answer.NO_DATA_SET)
        command = message.command_set
        self.sop_class = str(command.get("AffectedSOPClassUID", ""))
        if self.sop_class != context.abstract_syntax:
            if uid_to_service_class(self.sop_class) is not StorageServiceClass:
                # pynetdicom would end the association rather than have it answered.
                command.AffectedSOPClassUID = context.abstract_syntax
            return self._inbox.turn_away(Answer.NOT_OF_CONTEXT)
        arrival = self._inbox.arrive(
            self.sop_class,
            str(command.get("AffectedSOPInstanceUID", "")),
            context.transfer_syntax[0],
        )
        self._arrivals = [one for one in self._arrivals if not one.is_over]
        self._arrivals.append(arrival)
        return arrival


@contextmanager
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("pynetdicom", "pydicom")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"py(net)?dicom\b")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _end(server: ThreadedAssociationServer) -> None:
    """Lets the thread that accepts connections end, and closes its socket."""
    ending = threading.Thread(target=server.shutdown)
    ending.start()
    ending.join(0.01)
    # It has been told, but looks only twice a second; the end of its socket wakes it up.
    with suppress(OSError):
        cast(socket.socket, server.socket).shutdown(socket.SHUT_RDWR)
    ending.join()


def _check_title(setting: str, title: str) -> None:
    if not _AE_TITLE.fullmatch(title):
        variable = f"PRECEDENT_RECEIVE__{setting.upper()}"
        raise SettingsError(
            f"receive.{setting}: {title!r} is no AE title; it takes 1 to 16 printable ASCII "
            f"characters without backslash; correct {variable}"
        )


def _wait(until: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:
        time.sleep(0.05)
