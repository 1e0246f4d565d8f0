// An extension of OHIF 3.13 (React 18): a panel with the cases related to the study that is open.
// It lies beside OHIF's index.html and is named in app-config.js; docs/integration.md says how.

const ID = "precedent";
const { service, tokens } = window.config.precedent;

// The study that was opened; one beside it, as of a hit, comes after it.
const study = () => {
  const named = new URLSearchParams(window.location.search).getAll("StudyInstanceUIDs");
  return named.join(",").split(",")[0];
};

async function wanted({ detail }) {
  const answer = await fetch(`${tokens}?study=${encodeURIComponent(detail.study)}`);
  if (answer.ok) detail.give((await answer.json()).token);
}

function opened({ detail }) {
  const address = new URL(window.location.href);
  address.search = new URLSearchParams({
    StudyInstanceUIDs: `${study()},${detail.study}`,
    hangingProtocolId: "@ohif/hpCompare",
    ...(detail.series && detail.sop && {
      initialSeriesInstanceUID: detail.series,
      initialSOPInstanceUID: detail.sop,
    }),
  });
  window.location.assign(address);
}

function listen(element) {
  element?.addEventListener("token-wanted", wanted);
  element?.addEventListener("study-opened", opened);
}

// OHIF as npm has it keeps its React to itself. In a build of your own write
// <precedent-related study={study()} src={service} ref={listen} /> instead.
const element = (type, ref, props) => ({
  $$typeof: Symbol.for("react.element"), type, key: null, ref, props, _owner: null,
});

const Panel = () => element("div", null, {
  style: { height: "100%", overflowY: "auto" },
  children: element("precedent-related", listen, { study: study(), src: service }),
});

export default {
  id: ID,
  preRegistration() {
    const script = document.createElement("script");
    script.src = `${service}/static/precedent-related.js`;
    document.head.append(script);
  },
  getPanelModule: () => [{
    name: "related",
    iconName: "tab-studies",
    iconLabel: "Related",
    label: "Related cases",
    component: Panel,
  }],
  onModeEnter({ servicesManager }) {
    servicesManager.services.panelService.addPanel("right", `${ID}.panelModule.related`);
  },
};
