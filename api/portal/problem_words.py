"""Titles and details of problems that pages show, marked for the catalogues.

What is not among them, and what a detail says of one request, stays English.
"""

from api.portal.catalogues import later

__all__ = ["PROBLEMS"]

PROBLEMS = (
    later("The service failed"),
    later("an error that was not foreseen; the service's log says where it happened"),
    later("The index is not available"),
    later("the index cannot answer at the moment; the service's log says why"),
    later("The query cannot be answered"),
    later("No such image"),
    later("This search is over"),
    later(
        "a search by an upload goes on in the session that sent it, until ten minutes after it was "
        "last used; to go on, choose the file again: the filters stay as they are"
    ),
    later("The image cannot be used"),
    later("This key cannot be made"),
    later("a key needs a name and at least one scope; go back and choose them"),
    later("No such key"),
    later("The service does not know who asks"),
    later("This is not allowed"),
    later("this form is of another session; load the page again, and send it then"),
    later("The identity provider cannot be asked"),
    later("There is no index yet"),
    later("nothing has been indexed yet; the service answers soon after something is"),
    later("The index is in use"),
    later("another process holds the index; try again when it is done"),
    later("The ledger is not available"),
    later("the ledger cannot answer at the moment; the service's log says why"),
    later("The object store is not available"),
    later("where thumbnails lie does not answer, or refuses; the service's log says why"),
    later("The access cannot be recorded"),
    later(
        "the audit log takes no rows at the moment, and without one nothing is answered; the "
        "service's log says why"
    ),
    later("The job does not allow this"),
    later("No such job"),
    later("No document can be made or sent"),
    later("There is no such destination"),
    later("No such sending"),
    later("The source is not available"),
    later("where the image comes from cannot be reached, or refuses; the service's log says why"),
    later("The original is not there any more"),
    later("The original has changed"),
    later("The model is not available"),
    later("the model cannot be used; the service's log says why"),
    later("The service is not ready"),
    later("The request is not valid"),
    later("The EHR cannot be asked"),
    later(
        "the EHR does not answer as it should; open the page from it again in a while, and tell "
        "whoever runs this service, whose log says why"
    ),
    later("choose an image file first, or start from an image of the archive"),
    later("images are disliked, and none is liked; like one, or choose a file"),
    later(
        "this key is not valid: it is unknown, expired or revoked; `precedent keys create` makes "
        "one"
    ),
    later("this service has no keys"),
    later("this sign-in was not begun in this browser; begin it again"),
    later("The identity provider does not answer; try again later, or sign in with an API key."),
)
