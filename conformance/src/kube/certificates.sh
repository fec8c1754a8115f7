# Creates the keys and certificates of a cluster in the folder $1, for an API server at the
# address $2: the CA, the server's certificate, and the key pair that signs service account
# tokens.
set -e
mkdir -p "$1" && cd "$1"
key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
openssl req -x509 $key -days 2 -keyout ca.key -out ca.crt -subj /CN=ca
openssl req $key -keyout server.key -out server.csr -subj /CN=kube-apiserver
echo "subjectAltName=IP:$2,IP:127.0.0.1,IP:10.96.0.1,IP:fd00:10:96::1,DNS:kubernetes.default.svc" >server.ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.crt
openssl genrsa -out accounts.key 2048
openssl rsa -in accounts.key -pubout -out accounts.pub
