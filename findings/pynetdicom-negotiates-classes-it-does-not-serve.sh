#!/usr/bin/env bash
# pynetdicom 3.0.4: an SCP accepts retired and private SOP classes, and aborts when one is stored.
#
# Guess: what is in StoragePresentationContexts, or is added with add_supported_context and
# negotiated, can be stored with C-STORE; and AllStoragePresentationContexts holds all of them.
# Behaviour: 14 of the 120 classes of StoragePresentationContexts, all retired, are not in
# AllStoragePresentationContexts. They are accepted when the association is negotiated, as private
# ones are that were added, but belong to no service: at the C-STORE the association is aborted and
# the handler never called, unless register_uid has told the library that they are of storage.
# A sender sees a working negotiation, and an abort in place of a status, for each instance.
# Output seen:
#   14 of 120 are not in AllStoragePresentationContexts
#   1.2.840.10008.5.1.4.1.1.6: accepted 1, status none
#   1.2.840.113619.4.26: accepted 1, status none
#   1.2.840.10008.5.1.4.1.1.6 registered: accepted 1, status 0
#   1.2.840.113619.4.26 registered: accepted 1, status 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pynetdicom==3.0.4" "pydicom==3.0.2"
"$work/venv/bin/python" - <<'PYTHON' 2>"$work/errors" | tee "$work/seen"
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import (
    AE,
    AllStoragePresentationContexts,
    StoragePresentationContexts,
    evt,
    register_uid,
)
from pynetdicom.service_class import StorageServiceClass

every = {context.abstract_syntax for context in AllStoragePresentationContexts}
some = {context.abstract_syntax for context in StoragePresentationContexts}
print(f"{len(some - every)} of {len(some)} are not in AllStoragePresentationContexts")


def store(sop_class, said):
    scp = AE()
    scp.add_supported_context(sop_class)
    handlers = [(evt.EVT_C_STORE, lambda event: 0)]
    server = scp.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    scu = AE()
    scu.add_requested_context(sop_class, ImplicitVRLittleEndian)
    association = scu.associate("127.0.0.1", server.server_address[1])
    instance = Dataset()
    instance.SOPClassUID, instance.SOPInstanceUID = sop_class, "1.2.3"
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    accepted = len(association.accepted_contexts)
    status = association.send_c_store(instance).get("Status", "none")
    association.release()
    server.shutdown()
    print(f"{said}: accepted {accepted}, status {status}", flush=True)


CLASSES = {"1.2.840.10008.5.1.4.1.1.6": "RetiredUltrasound", "1.2.840.113619.4.26": "Private"}
for sop_class in CLASSES:
    store(sop_class, sop_class)
for sop_class, keyword in CLASSES.items():
    register_uid(sop_class, keyword, StorageServiceClass)
    store(sop_class, f"{sop_class} registered")
PYTHON
diff "$work/seen" - <<'SEEN'
14 of 120 are not in AllStoragePresentationContexts
1.2.840.10008.5.1.4.1.1.6: accepted 1, status none
1.2.840.113619.4.26: accepted 1, status none
1.2.840.10008.5.1.4.1.1.6 registered: accepted 1, status 0
1.2.840.113619.4.26 registered: accepted 1, status 0
SEEN
