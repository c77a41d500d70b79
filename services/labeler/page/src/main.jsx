// Which page it is: by the path, and by who looks at it.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";

import { whoAmI } from "./api.js";
import { Labelling } from "./labelling.jsx";
import { Live } from "./live.jsx";
import { Operator } from "./operator.jsx";
import { Invite, NoAccess, Trouble } from "./signin.jsx";
import "./style.css";

function Page() {
  const [who, setWho] = useState({ state: "asking" });
  const invite = location.pathname.match(/^\/invite\/(.+)$/)?.[1];
  const ask = async () => {
    try {
      setWho({ state: "in", me: await whoAmI() });
    } catch (fault) {
      setWho(fault.status === 401 ? { state: "out" } : { state: "fault", words: fault.message });
    }
  };
  useEffect(() => {
    if (!invite) ask();
  }, []);

  if (invite)
    return <Invite token={invite} entered={(role) => location.replace(role === "operator" ? "/operator" : "/")} />;
  if (who.state === "asking") return null;
  if (who.state === "out") return <NoAccess />;
  if (who.state === "fault") return <Trouble words={who.words} again={ask} />;
  if (location.pathname === "/operator") return <Operator me={who.me} signedOut={() => setWho({ state: "out" })} />;
  if (location.pathname === "/live") return <Live me={who.me} />;
  return <Labelling me={who.me} signedOut={() => setWho({ state: "out" })} />;
}

render(<Page />, document.getElementById("page"));
